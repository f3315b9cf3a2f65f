"""The tokens of a study's sources, each loaded once for as long as a driver works."""

from __future__ import annotations

from trimtab.data import TokenData, TokenSource


class Tokens:
    """Loads a source when it is first asked for; another study loads its own, as files may have changed."""

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
