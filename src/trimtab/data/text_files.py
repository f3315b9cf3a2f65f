"""``text_files``: the user's own UTF-8 text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import accumulate, chain, count
from pathlib import Path
from typing import final

import numpy as np
from typing_extensions import override

from trimtab.data.source import CorpusError, TokenData, TokenSource, check_file, check_length
from trimtab.data.tokenizer import check_vocab_size, encode

OWN_PART = 4096


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TextFiles(TokenSource):
    """Text files, joined in the given order; the end of each file is held out.

    If there are several files, the held-out end of each becomes a part with the name of the file, provided that it has
    4 KiB or more. The shorter ends together, or the end of a single file, become the part ``text``; if that has less
    than 4 KiB beside other parts, it is added to the last of them.

    Attributes:
        paths: UTF-8 files, relative to the working folder.
        held_out_share: share of each file, at its end, that is held out.
        vocab_size: 256 for raw bytes; a larger value trains a byte-level BPE of that size on the training text.

    Raises:
        ValueError: if paths is empty, held_out_share is outside 0 to 0.5, or vocab_size is outside 256 to 65536.
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
            # The cut is between characters, so that both sides are valid UTF-8.
            cut = len(text.decode()[: int(len(text.decode()) * (1 - self.held_out_share))].encode())
            train.append(text[:cut])
            if len(self.paths) > 1 and len(text) - cut >= OWN_PART:
                parts[_free(path.stem, parts)] = [text[cut:]]
            else:
                rest.append(text[cut:])
        if parts and sum(map(len, rest)) < OWN_PART:
            parts[list(parts)[-1]] += rest  # too short for a part
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
    """The name, with a number after it if another part has the name."""
    numbered = (f"{name}-{number}" for number in count(2))
    return next(one for one in chain([name], numbered) if one not in taken and one != "text")


def read_text(path: Path, setting: str) -> bytes:
    """The content of a UTF-8 file.

    Raises:
        CorpusError: if the file is missing, empty, binary or not UTF-8; the message names the setting to check.
    """
    check_file(path, setting)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not text:
        raise CorpusError(f"{path}: the file is empty; remove it from {setting}")
    if b"\0" in text:
        raise CorpusError(
            f"{path}: byte {text.index(0)} is NUL, so the file is not text; for token ids, use data.token_files"
        )
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from error
    return text
