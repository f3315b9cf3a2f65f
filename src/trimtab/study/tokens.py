"""The tokens of a study's data sources; each source is loaded once per driver."""

from __future__ import annotations

from trimtab.data import TokenData, TokenSource


class Tokens:
    """Loads a data source on first use. Studies do not share tokens, because files may change between studies."""

    def __init__(self) -> None:
        self._loaded: dict[TokenSource, TokenData] = {}

    def of(self, source: TokenSource) -> TokenData:
        """The tokens of a source.

        Raises:
            CorpusError: if they cannot be used.
        """
        if source not in self._loaded:
            self._loaded[source] = source.load()
        return self._loaded[source]
