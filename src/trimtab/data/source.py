"""The contract of a token source: tokens to train on, tokens held out, and the two chance levels."""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.unsignedinteger]


class CorpusError(ValueError):
    """Text or tokens that cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True, eq=False)
class TokenData:
    """What a source gives.

    Attributes:
        train: token ids, 1-D.
        held_out: token ids by part, each 1-D; never part of ``train``.
        bytes_per_token: UTF-8 bytes of text per token, or nan where there is no text.
        fingerprint: SHA-256 over ids and split; part of a run's identity.
        breaks: by held-out part, the indices of tokens at which another document begins, ascending.
        encode: token ids of further UTF-8 text by the same vocabulary; None where there is no text.
        entropy_rate: lowest loss any model can reach, in nats, where it is known.
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
        object.__setattr__(self, "unigram_entropy", entropy(np.bincount(self.train)))

    @property
    def log_vocab(self) -> float:
        """Loss of a uniform guess, in nats."""
        return math.log(self.vocab_size)


def entropy(counts: NDArray[np.integer]) -> float:
    """Entropy of a distribution given by counts, in nats; zero counts add nothing, no counts at all give 0."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float(-(share * np.log(share)).sum())


class TokenSource(ABC):
    """A configuration that can be loaded; a frozen dataclass with a ``vocab_size``."""

    vocab_size: int

    @classmethod
    def slug(cls) -> str:
        """The name used in config tables."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @abstractmethod
    def load(self) -> TokenData:
        """Read or make the tokens.

        Raises:
            CorpusError: if a file is damaged, empty, binary, too short, or holds ids outside the vocabulary.
        """


def check_length(name: str, tokens: Tokens, least: int = 1024) -> None:
    """Refuse a part too short to draw from.

    Raises:
        CorpusError: if there are fewer than ``least`` tokens.
    """
    if len(tokens) < least:
        raise CorpusError(f"{name}: {len(tokens)} tokens are too few, at least {least} are needed; give more text")
