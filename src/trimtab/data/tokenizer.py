"""From text to token ids, as bytes or by a byte-level BPE that is trained once and then read from a cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from trimtab.data.source import TokenData, Tokens

BYTES = 256
LARGEST = 65_536


def check_vocab_size(vocab_size: int) -> None:
    """Refuse a vocabulary size by which text cannot be encoded.

    Raises:
        ValueError: if it is below 256 (one id per byte) or above 65536 (ids are stored in 16 bits).
    """
    if not BYTES <= vocab_size <= LARGEST:
        raise ValueError(f"vocab_size must lie between {BYTES} (raw bytes) and {LARGEST}, got {vocab_size}")


def encode(
    train: bytes, held_out: Mapping[str, bytes], vocab_size: int, breaks: Mapping[str, Sequence[int]] | None = None
) -> TokenData:
    """Token ids of a text: its bytes if ``vocab_size`` is 256, else those of a BPE that is trained on ``train``.

    The ids of a BPE are cached on disk under the hash of all text and the vocabulary size. A cache file that is missing
    or damaged, or that another version wrote, is made again; the cache can be deleted at any time.

    Args:
        train: UTF-8 text to train on.
        held_out: UTF-8 text by name of the held-out part.
        vocab_size: number of different ids.
        breaks: by held-out part, the offsets in bytes at which another document begins; a line must begin there too.
    """
    if vocab_size == BYTES:
        parts = {name: np.frombuffer(text, dtype=np.uint8) for name, text in held_out.items()}
        return TokenData(
            np.frombuffer(train, dtype=np.uint8), parts, vocab_size, 1.0, encode=_bytes, breaks=breaks or {}
        )
    digest = hashlib.sha256(train)
    for name, text in sorted(held_out.items()):
        digest.update(name.encode() + hashlib.sha256(text).digest())
    digest.update(repr(sorted((breaks or {}).items())).encode())
    cached = cache_folder() / f"bpe-{digest.hexdigest()[:16]}-{vocab_size}.npz"
    ids = _read_cached(cached)
    if ids is None or not _complete(ids, held_out, vocab_size, breaks or {}):
        ids = _encode_by_bpe(train, held_out, vocab_size, breaks or {})
        _write_whole(cached, ids)
    parts = {name: ids[f"held_out.{name}"] for name in held_out}
    begins = {name: [int(i) for i in ids[f"breaks.{name}"]] for name in breaks or {}}
    by_bpe = partial(_ids, str(ids["tokenizer"]))
    return TokenData(ids["train"], parts, vocab_size, len(train) / len(ids["train"]), encode=by_bpe, breaks=begins)


def _bytes(text: bytes) -> Tokens:
    return np.frombuffer(text, dtype=np.uint8)


def _ids(tokenizer: str, text: bytes) -> Tokens:
    """Ids of a text by a tokenizer given as JSON; the text is encoded line by line, as the training text was."""
    from tokenizers import Tokenizer

    encoded = cast("Any", Tokenizer).from_str(tokenizer).encode_batch(text.decode().splitlines(keepends=True))
    nothing = np.array([], dtype=np.uint16)  # an empty text has no lines
    return np.concatenate([nothing, *(np.asarray(line.ids, dtype=np.uint16) for line in encoded)])


def _read_cached(path: Path) -> dict[str, Tokens] | None:
    """The arrays of a cache file; None if the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception:  # numpy, zipfile and zlib raise a dozen types on damaged files, and the remedy is always the same
        return None


def _complete(
    ids: Mapping[str, Tokens], held_out: Mapping[str, bytes], vocab_size: int, breaks: Mapping[str, Sequence[int]]
) -> bool:
    """Whether a cache file holds every array as this version writes it; an older version may have written fewer."""
    lists = ["train", *(f"held_out.{name}" for name in held_out)]
    places = {f"breaks.{name}": len(indices) for name, indices in breaks.items()}
    if not {*lists, *places, "tokenizer"} <= ids.keys():
        return False
    if not all(_are_ids(ids[name], vocab_size) for name in lists) or not len(ids["train"]):
        return False
    if not all(ids[name].dtype == np.uint64 and ids[name].shape == (count,) for name, count in places.items()):
        return False
    return _is_tokenizer(str(ids["tokenizer"]))


def _are_ids(array: Tokens, vocab_size: int) -> bool:
    return array.dtype == np.uint16 and array.ndim == 1 and int(array.max(initial=0)) < vocab_size


def _is_tokenizer(text: str) -> bool:
    from tokenizers import Tokenizer

    try:
        cast("Any", Tokenizer).from_str(text)
    except Exception:  # the only type that the package raises
        return False
    return True


def cache_folder() -> Path:
    """The folder of derived tokens: ``$TRIMTAB_CACHE``, or ``~/.cache/trimtab`` if that is not set."""
    return Path(os.environ.get("TRIMTAB_CACHE") or Path.home() / ".cache" / "trimtab")


def _encode_by_bpe(
    train: bytes, held_out: Mapping[str, bytes], vocab_size: int, breaks: Mapping[str, Sequence[int]]
) -> dict[str, Tokens]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    lines = train.decode().splitlines(keepends=True)
    tokenizer.train_from_iterator(lines, trainer)

    stored = tokenizer.to_str()

    def ids(text: bytes) -> Tokens:
        return _ids(stored, text)

    coded = {"train": ids(train), **{f"held_out.{name}": ids(text) for name, text in held_out.items()}}
    for name, places in breaks.items():
        coded[f"breaks.{name}"] = np.array([len(ids(held_out[name][:place])) for place in places], dtype=np.uint64)
    coded["tokenizer"] = cast(Tokens, np.array(stored))
    return coded


def _write_whole(path: Path, arrays: Mapping[str, Tokens]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    Path(file.name).replace(path)
