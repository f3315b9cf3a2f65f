"""Token sources, one file each; every source is a frozen dataclass whose ``load`` returns ``TokenData``.

The slug of a source is the snake-case form of its class name.
"""

from __future__ import annotations

from trimtab.data.classics import Classics
from trimtab.data.source import CorpusError, TokenData, TokenSource
from trimtab.data.text_files import TextFiles
from trimtab.data.token_files import TokenFiles
from trimtab.data.zipf_markov import ZipfMarkov

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


def catalogue() -> dict[str, type[TokenSource]]:
    """Every source by slug."""
    return {source.slug(): source for source in (Classics, TextFiles, TokenFiles, ZipfMarkov)}
