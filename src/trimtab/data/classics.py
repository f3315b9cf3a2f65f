"""``classics``: Austen, Shakespeare and the King James Bible; the default corpus, which comes with the package."""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import accumulate
from typing import final

import numpy as np
from typing_extensions import override

from trimtab.data.source import CorpusError, TokenData, TokenSource
from trimtab.data.tokenizer import check_vocab_size, encode


@dataclass(frozen=True, slots=True)
class Text:
    """One packed text: file name, SHA-256, and the byte ranges of the documents that are held out."""

    file: str
    sha256: str
    held_out: tuple[tuple[str, int, int], ...]


# The SHA-256 is that of the uncompressed text. A range is (document, first byte, byte after the last).
TEXTS = (
    Text(
        "austen.txt.xz",
        "58c88c6fe55d5380535e99c516d188aa529de79af6eeea3fb1673d1593f812cd",
        (("Persuasion", 2_199_217, 2_666_072),),
    ),
    Text(
        "shakespeare.txt.xz",
        "83546021652d14585d31c995453c7b0c715e454fe80d824074357ce652d9b8c1",
        (
            ("Twelfth Night", 705_905, 824_325),
            ("Richard II", 2_219_504, 2_355_466),
            ("The Tempest", 4_212_749, 4_313_307),
            ("Macbeth", 4_656_938, 4_762_650),
        ),
    ),
    Text(
        "kjv.txt.xz",
        "37413d6bc4385529998d0908037c6433605af5c47940ebafbe0d10973709c8a0",
        (
            ("Ruth", 1_011_145, 1_024_004),
            ("Isaiah", 2_320_514, 2_513_598),
            ("John", 3_516_272, 3_613_369),
        ),
    ),
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Classics(TokenSource):
    """13.3 MB of public-domain English. Whole documents are held out: one novel, four plays, three books of the Bible.

    Attributes:
        vocab_size: 256 for raw bytes; a larger value trains a byte-level BPE of that size on the training text.

    Raises:
        ValueError: if vocab_size is below 256 or above 65536.
    """

    vocab_size: int = 256

    def __post_init__(self) -> None:
        check_vocab_size(self.vocab_size)

    @override
    def load(self) -> TokenData:
        return _load(self.vocab_size)


@lru_cache(maxsize=2)
def _load(vocab_size: int) -> TokenData:
    train: list[bytes] = []
    held_out: dict[str, bytes] = {}
    breaks: dict[str, list[int]] = {}
    for text in TEXTS:
        whole = read_text(text)
        start = 0
        pieces: list[bytes] = []
        for _document, first, end in text.held_out:
            train.append(whole[start:first])
            pieces.append(whole[first:end])
            start = end
        train.append(whole[start:])
        name = text.file.split(".")[0]
        held_out[name] = b"".join(pieces)
        breaks[name] = list(accumulate(len(piece) for piece in pieces[:-1]))
    return encode(b"".join(train), held_out, vocab_size, breaks)


def read_text(text: Text) -> bytes:
    """One text, unpacked and checked against its SHA-256.

    Raises:
        CorpusError: if the file is missing or damaged.
    """
    path = files("trimtab") / "data" / "classics_text" / text.file
    try:
        whole = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise CorpusError(f"{path}: cannot be read ({error}); install trimtab again") from error
    if hashlib.sha256(whole).hexdigest() != text.sha256:
        raise CorpusError(f"{path}: the text is damaged (SHA-256 differs); install trimtab again")
    return whole


def documents() -> dict[str, np.ndarray]:
    """Every held-out document as bytes, by title."""
    return {
        title: np.frombuffer(read_text(text)[first:end], dtype=np.uint8)
        for text in TEXTS
        for title, first, end in text.held_out
    }
