"""``zipf_markov``: a first-order Markov chain whose entropy rate, the lowest possible loss, is known exactly.

The next-token distribution of every state is the same Zipf law, with its ranks permuted inside blocks whose sizes grow
geometrically. Therefore every row of the transition matrix has the entropy of the law, rare tokens stay rare, and the
next token depends on the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from trimtab.data.source import TokenData, TokenSource

CHAINS = 256
GROWTH = 8  # factor from the size of one block to that of the next
LEAST_TOKENS = 10_000
MOST_TOKENS = 1_000_000_000  # drawing takes about 20 bytes of memory a token


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ZipfMarkov(TokenSource):
    """A synthetic language.

    Attributes:
        exponent: exponent of the Zipf law; a larger value gives fewer common tokens and a lower entropy rate.
        num_tokens: length of the training stream; the held-out stream has a tenth of this length.
        seed: seed of the chain; both streams depend on it.

    Raises:
        ValueError: if vocab_size is outside 2 to 65536, exponent outside 0 to 20, num_tokens outside 10000 to 10^9, or
            seed is negative.
    """

    vocab_size: int = 512
    exponent: float = 1.5
    num_tokens: int = 2_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.vocab_size <= 65_536:
            raise ValueError(f"vocab_size must lie between 2 and 65536, got {self.vocab_size}")
        if not 0 < self.exponent < 20:
            raise ValueError(f"exponent must be above 0 and below 20, got {self.exponent}")
        if not LEAST_TOKENS <= self.num_tokens <= MOST_TOKENS:
            raise ValueError(f"num_tokens must lie between {LEAST_TOKENS} and {MOST_TOKENS}, got {self.num_tokens}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    @property
    def law(self) -> NDArray[np.float64]:
        """Probability of each rank."""
        weight = np.arange(1, self.vocab_size + 1, dtype=np.float64) ** -self.exponent
        return weight / weight.sum()

    @property
    def blocks(self) -> NDArray[np.int64]:
        """First rank of each block: 0, 8, 72, 584, ... The first has only 8 ranks, so common tokens move too."""
        starts = [0]
        while starts[-1] + GROWTH ** len(starts) < self.vocab_size:
            starts.append(starts[-1] + GROWTH ** len(starts))
        return np.array(starts)

    @property
    def entropy_rate(self) -> float:
        """Entropy of the next token given the past, in nats: no model can have a lower expected loss."""
        return float(-(self.law * np.log(self.law)).sum())

    def next_token(self, state: NDArray[np.integer], rank: NDArray[np.integer]) -> NDArray[np.int64]:
        """The token that a rank stands for in a state: a rotation inside the rank's block."""
        block = np.searchsorted(self.blocks, rank, side="right") - 1
        start = self.blocks[block]
        size = np.append(self.blocks, self.vocab_size)[block + 1] - start
        return start + (rank - start + state) % size

    @override
    def load(self) -> TokenData:
        rng = np.random.default_rng(self.seed)
        train = self._stream(rng, self.num_tokens)
        return TokenData(
            train,
            {"zipf_markov": self._stream(rng, self.num_tokens // 10)},
            self.vocab_size,
            float("nan"),
            self.entropy_rate,
        )

    def _stream(self, rng: np.random.Generator, num_tokens: int) -> NDArray[np.uint16]:
        length = -(-num_tokens // CHAINS)
        edges = np.cumsum(self.law)[:-1]
        ranks = np.searchsorted(edges, rng.random((length, CHAINS)), side="right")
        tokens = np.empty((length, CHAINS), dtype=np.uint16)
        state = rng.integers(self.vocab_size, size=CHAINS)
        for step in range(length):
            state = self.next_token(state, ranks[step])
            tokens[step] = state
        return tokens.T.reshape(-1)[:num_tokens]
