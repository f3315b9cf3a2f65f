"""``text_files``: the user's own UTF-8 text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import accumulate, chain, count
from pathlib import Path
from typing import final

import numpy as np
from typing_extensions import override

from trimtab.data.source import CorpusError, TokenData, TokenSource, check_length
from trimtab.data.tokenizer import check_vocab_size, encode

OWN_PART = 4096


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TextFiles(TokenSource):
    """Text files, joined in the order given; the end of each is held out.

    Of several files, what is held out of each is a part of its own, named after the file, if it has 4 KB or more. What
    is held out of the others, or of a single file, is the part ``text``; less than 4 KB of it joins the last part.

    Attributes:
        paths: UTF-8 files, relative to the working folder.
        held_out_share: share of each file, at its end, that is never trained on.
        vocab_size: 256 reads raw bytes; more trains a byte-level BPE of that size on the training text.

    Raises:
        ValueError: if no path is given, the share is outside 0 to 0.5, or vocab_size outside 256 to 65536.
    """

    paths: tuple[str, ...] = field(metadata={"identity": False})
    held_out_share: float = 0.1
    vocab_size: int = 256

    def __post_init__(self) -> None:
        check_vocab_size(self.vocab_size)
        if not self.paths:
            raise ValueError("paths is empty; name at least one text file")
        if not 0 < self.held_out_share <= 0.5:
            raise ValueError(f"held_out_share must be above 0 and at most 0.5, got {self.held_out_share}")

    @override
    def load(self) -> TokenData:
        train: list[bytes] = []
        parts: dict[str, list[bytes]] = {}
        rest: list[bytes] = []
        for path in map(Path, self.paths):
            text = read_text(path, "data.text_files.paths")
            # Cut at a character, so that both sides stay valid UTF-8.
            cut = len(text.decode()[: int(len(text.decode()) * (1 - self.held_out_share))].encode())
            train.append(text[:cut])
            if len(self.paths) > 1 and len(text) - cut >= OWN_PART:
                parts[_free(path.stem, parts)] = [text[cut:]]
            else:
                rest.append(text[cut:])
        if parts and sum(map(len, rest)) < OWN_PART:
            parts[list(parts)[-1]] += rest  # too little to stand alone
        else:
            parts["text"] = rest
        held_out = {name: b"".join(pieces) for name, pieces in parts.items()}
        breaks = {name: list(accumulate(map(len, pieces[:-1]))) for name, pieces in parts.items()}
        named = ", ".join(self.paths)
        check_length(named, np.frombuffer(b"".join(train), dtype=np.uint8))
        data = encode(b"".join(train), held_out, self.vocab_size, breaks)
        check_length(named, data.train)
        every = np.concatenate(list(data.held_out.values()))
        check_length(f"{named} (held out)", every, least=256)
        return data


def _free(name: str, taken: Collection[str]) -> str:
    """The name, numbered where it is taken."""
    numbered = (f"{name}-{number}" for number in count(2))
    return next(one for one in chain([name], numbered) if one not in taken and one != "text")


def read_text(path: Path, setting: str) -> bytes:
    """A plain UTF-8 file, whole.

    Raises:
        CorpusError: if it is missing, empty, binary or not UTF-8, naming the setting to check.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: no such file, or not a plain file; check {setting}")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not text:
        raise CorpusError(f"{path}: the file is empty; remove it from {setting}")
    if b"\0" in text:
        raise CorpusError(f"{path}: byte {text.index(0)} is NUL, so this is not text; use token_files for ids")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from error
    return text
