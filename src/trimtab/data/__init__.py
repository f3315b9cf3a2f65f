"""Token sources, one file each; every source is a frozen dataclass whose ``load`` returns ``TokenData``.

A source is found by its slug, the snake-case form of its class name; a new file in this folder, or an entry point
``trimtab.data`` of another package, is all it takes.
"""

from __future__ import annotations

from inspect import isabstract

from trimtab.data.classics import Classics
from trimtab.data.source import CorpusError, TokenData, TokenSource
from trimtab.data.text_files import TextFiles
from trimtab.data.token_files import TokenFiles
from trimtab.data.zipf_markov import ZipfMarkov
from trimtab.registry import Catalogue

__all__ = [
    "Classics",
    "CorpusError",
    "TextFiles",
    "TokenData",
    "TokenFiles",
    "TokenSource",
    "ZipfMarkov",
    "catalogue",
]


_CATALOGUE = Catalogue[type[TokenSource]](
    __name__,
    lambda value: isinstance(value, type) and issubclass(value, TokenSource) and not isabstract(value),
    lambda source: source.slug(),
)


def catalogue() -> dict[str, type[TokenSource]]:
    """Every source by slug, also those of other packages, in alphabetical order."""
    return _CATALOGUE.all()
