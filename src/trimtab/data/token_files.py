"""``token_files``: ids that the user tokenized already, as flat little-endian integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

import numpy as np
from typing_extensions import override

from trimtab.data.source import CorpusError, TokenData, Tokens, TokenSource, check_length


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFiles(TokenSource):
    """Two files of uint16 or uint32 ids without a header, as nanoGPT's ``prepare.py`` writes them.

    Attributes:
        bytes_per_token: UTF-8 bytes of text per token, for bits per byte; 0 where unknown.

    Raises:
        ValueError: if vocab_size is below 2 or bytes_per_token is negative.
    """

    train: str = field(metadata={"identity": False})
    held_out: str = field(metadata={"identity": False})
    vocab_size: int
    dtype: Literal["uint16", "uint32"] = "uint16"
    bytes_per_token: float = 0.0

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2, got {self.vocab_size}")
        if not self.bytes_per_token >= 0:
            raise ValueError(f"bytes_per_token must not be negative, got {self.bytes_per_token}")

    @override
    def load(self) -> TokenData:
        train, held_out = self._read(self.train), self._read(self.held_out)
        check_length(self.held_out, held_out, least=256)
        return TokenData(train, {"held_out": held_out}, self.vocab_size, self.bytes_per_token or float("nan"))

    def _read(self, name: str) -> Tokens:
        path = Path(name)
        if not path.is_file():
            raise CorpusError(f"{path}: no such file, or not a plain file; check data.token_files")
        width = np.dtype(self.dtype).itemsize
        if path.stat().st_size % width:
            raise CorpusError(f"{path}: {path.stat().st_size} bytes are not whole {self.dtype} ids; check dtype")
        tokens = np.fromfile(path, dtype=np.dtype(self.dtype).newbyteorder("<"))
        check_length(name, tokens, least=256)
        if int(tokens.max()) >= self.vocab_size:
            at = int((tokens >= self.vocab_size).argmax())
            raise CorpusError(
                f"{path}: id {int(tokens[at])} at offset {at} is outside the vocabulary of {self.vocab_size}; "
                "check vocab_size and dtype"
            )
        return tokens
