"""``token_files``: ids that the user tokenized already, as flat little-endian integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

import numpy as np
from typing_extensions import override

from trimtab.data.source import CorpusError, TokenData, Tokens, TokenSource, check_file, check_length

LARGEST_VOCABULARY = 1 << 24
LEAST_IDS = 256


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFiles(TokenSource):
    """Two files of uint16 or uint32 ids without a header, as nanoGPT's ``prepare.py`` writes them.

    Attributes:
        train: path of the ids to train on, relative to the working folder.
        held_out: path of the ids that are held out, relative to the working folder.
        vocab_size: number of different ids; every id must be below it.
        dtype: type in which the ids are stored, little-endian.
        bytes_per_token: UTF-8 bytes of text per token, for bits per byte; 0 if unknown.

    Raises:
        ValueError: if vocab_size is outside 2 to 2^24, or bytes_per_token is negative.
    """

    train: str = field(metadata={"identity": False})
    held_out: str = field(metadata={"identity": False})
    vocab_size: int
    dtype: Literal["uint16", "uint32"] = "uint16"
    bytes_per_token: float = 0.0

    def __post_init__(self) -> None:
        if not 2 <= self.vocab_size <= LARGEST_VOCABULARY:
            raise ValueError(f"vocab_size must lie between 2 and {LARGEST_VOCABULARY}, got {self.vocab_size}")
        if not self.bytes_per_token >= 0:
            raise ValueError(f"bytes_per_token must not be negative, got {self.bytes_per_token}")

    @override
    def load(self) -> TokenData:
        train, held_out = self._read(self.train), self._read(self.held_out)
        check_length(self.held_out, held_out, least=LEAST_IDS)
        return TokenData(train, {"held_out": held_out}, self.vocab_size, self.bytes_per_token or float("nan"))

    def _read(self, name: str) -> Tokens:
        path = Path(name)
        check_file(path, "data.token_files")
        width = np.dtype(self.dtype).itemsize
        try:
            size = path.stat().st_size
            tokens = np.fromfile(path, dtype=np.dtype(self.dtype).newbyteorder("<"))
        except OSError as error:
            raise CorpusError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        if size % width:
            raise CorpusError(f"{path}: {size} bytes are not whole {self.dtype} ids; check dtype")
        check_length(name, tokens, least=LEAST_IDS)
        if self.dtype == "uint16" and _looks_like_uint32(tokens):
            raise CorpusError(
                f"{path}: every second uint16 id is 0, so the file seems to hold uint32 ids; "
                'set data.token_files.dtype = "uint32"'
            )
        if int(tokens.max()) >= self.vocab_size:
            at = int((tokens >= self.vocab_size).argmax())
            raise CorpusError(
                f"{path}: id {int(tokens[at])} at offset {at} is outside the vocabulary of {self.vocab_size}; "
                "check vocab_size and dtype"
            )
        return tokens


def _looks_like_uint32(tokens: Tokens) -> bool:
    """Whether these uint16 ids are probably the halves of uint32 ids below 65536.

    The upper halves, at odd offsets, are then all 0. In a text, no token stands at exactly every second place.
    """
    upper = tokens[1::2]
    lower = tokens[::2]
    return len(tokens) >= LEAST_IDS and len(upper) == len(lower) and not upper.any() and bool(lower.any())
