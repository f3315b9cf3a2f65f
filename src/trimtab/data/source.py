"""The contract of a token source: training tokens, held-out tokens, and the losses of two trivial predictors."""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.unsignedinteger]
PIECE = 1 << 20


class CorpusError(ValueError):
    """Text or tokens that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True, eq=False)
class TokenData:
    """The tokens of a source.

    Attributes:
        train: token ids, 1-D.
        held_out: token ids by part, each 1-D; never part of ``train``.
        vocab_size: number of different ids.
        bytes_per_token: UTF-8 bytes of text per token; nan if there is no text.
        entropy_rate: lowest expected loss that a model can have, in nats; None if it is not known.
        encode: returns the token ids of further UTF-8 text in the same vocabulary; None if there is no text.
        breaks: by held-out part, the indices of the tokens at which another document begins, ascending.
        fingerprint: SHA-256 over ids and split; part of a run's identity.
        unigram_entropy: entropy of the frequencies of the ids in ``train``, in nats: the loss of the best constant
            prediction.
    """

    train: Tokens
    held_out: Mapping[str, Tokens]
    vocab_size: int
    bytes_per_token: float
    entropy_rate: float | None = None
    encode: Callable[[bytes], Tokens] | None = None
    breaks: Mapping[str, Sequence[int]] = field(default_factory=dict[str, "Sequence[int]"])
    fingerprint: str = field(init=False)
    unigram_entropy: float = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(str(self.vocab_size).encode())
        for name, tokens in (("train", self.train), *sorted(self.held_out.items())):
            digest.update(f"{name}:{tokens.dtype}:{len(tokens)}".encode())
            digest.update(np.ascontiguousarray(tokens).data)
        object.__setattr__(self, "fingerprint", digest.hexdigest())
        object.__setattr__(self, "unigram_entropy", entropy(_counts(self.train)))

    @property
    def log_vocab(self) -> float:
        """Loss of a uniform prediction, in nats."""
        return math.log(self.vocab_size)


def _counts(tokens: Tokens) -> NDArray[np.integer]:
    """How often each id occurs; in pieces, since ``bincount`` copies what it counts as 64-bit numbers."""
    length = int(tokens.max()) + 1 if len(tokens) else 0
    pieces = (tokens[start : start + PIECE] for start in range(0, len(tokens), PIECE))
    return sum((np.bincount(piece, minlength=length) for piece in pieces), np.zeros(length, dtype=np.int64))


def entropy(counts: NDArray[np.integer]) -> float:
    """Entropy of a distribution given by counts, in nats; a count of zero adds nothing, and no counts give 0."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float(-(share * np.log(share)).sum())


class TokenSource(ABC):
    """A configuration that tokens can be loaded from; a subclass is a frozen dataclass with a ``vocab_size``."""

    vocab_size: int

    @classmethod
    def slug(cls) -> str:
        """The name of the source in config tables."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @abstractmethod
    def load(self) -> TokenData:
        """Read or generate the tokens.

        Raises:
            CorpusError: if a file is damaged, empty, binary, too short, or holds ids outside the vocabulary.
        """


def check_file(path: Path, setting: str) -> None:
    """Refuse a path that is not a plain file, such as a folder or a named pipe.

    Raises:
        CorpusError: naming the setting that holds the path.
    """
    try:
        plain = path.is_file()
    except OSError:  # such as a name that is too long
        plain = False
    if not plain:
        raise CorpusError(f"{path}: no such file, or not a plain file; check {setting}")


def check_length(name: str, tokens: Tokens, least: int = 1024) -> None:
    """Refuse a part that is too short to draw sequences from.

    Raises:
        CorpusError: if there are fewer than ``least`` tokens.
    """
    if len(tokens) < least:
        raise CorpusError(f"{name}: {len(tokens)} tokens are too few, at least {least} are needed; give more text")
