"""From tokens to batches; a training batch is a pure function of tokens, seed and step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from trimtab.data.source import CorpusError, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOrder:
    """What is unusual about the training batches: hard conditions, under which methods against spikes can differ.

    Attributes:
        parts: the training text is cut into this number of equal parts, and all sequences of a batch come from one
            part, drawn at random; 1 draws every sequence from the whole text.
        part_steps: successive steps whose batches come from the same part.
        shuffled_steps: steps, counted from 1, whose batches are bad: the tokens of each sequence are shuffled.

    Raises:
        ValueError: if a number is not positive, or ``part_steps`` is set without ``parts``.
    """

    parts: int = 1
    part_steps: int = 1
    shuffled_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("parts", "part_steps"):
            if not 1 <= getattr(self, name) <= 10**6:
                raise ValueError(f"{name} must lie between 1 and 1,000,000, got {getattr(self, name)}")
        if self.part_steps > 1 and self.parts == 1:
            raise ValueError("part_steps tells for how long batches come from one part; set parts too")
        if any(step < 1 for step in self.shuffled_steps):
            raise ValueError(f"shuffled_steps are counted from 1, got {min(self.shuffled_steps)}")

    def part_of(self, tokens: Tokens, seed: int, step: int) -> Tokens:
        """The tokens from which the batch of a step, counted from 0, is drawn."""
        if self.parts == 1:
            return tokens
        part = int(np.random.default_rng((seed, step // self.part_steps, 1)).integers(self.parts))
        length = len(tokens) // self.parts
        return tokens[part * length : (part + 1) * length]


def training_batch(
    tokens: Tokens, *, seed: int, step: int, batch_size: int, context: int, order: BatchOrder | None = None
) -> Int[Tensor, "B T_plus_1"]:
    """Random windows of context + 1 tokens; the inputs are all but the last token, the targets all but the first.

    Args:
        tokens: the training text.
        seed: seed of the order of the data.
        step: number of the step, from 0.
        batch_size: number of windows.
        context: length of the inputs.
        order: what is unusual about the batches; None for nothing.

    Raises:
        CorpusError: if the text, or a part of it, is shorter than one window.
    """
    order = order or BatchOrder()
    drawn_from = order.part_of(tokens, seed, step)
    if len(drawn_from) <= context:
        raise CorpusError(
            f"{len(drawn_from)} tokens are fewer than one sequence of {context + 1}; lower model.context"
            + (" or batches.parts" if order.parts > 1 else "")
        )
    generator = np.random.default_rng((seed, step))
    starts = generator.integers(len(drawn_from) - context, size=batch_size)
    windows = drawn_from[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    if step + 1 in order.shuffled_steps:
        windows = generator.permuted(windows, axis=1)
    return torch.from_numpy(windows)


def held_out_batch(held_out: Mapping[str, Tokens], *, num_sequences: int, context: int) -> Int[Tensor, "B T_plus_1"]:
    """Windows of context + 1 tokens, evenly spaced over all held-out parts; every call returns the same windows.

    Each part gives windows in proportion to its length, and at least one.

    Raises:
        CorpusError: if a part is shorter than one window.
    """
    windows: list[np.ndarray] = []
    total = sum(len(tokens) for tokens in held_out.values())
    for name, tokens in held_out.items():
        share = max(1, round(num_sequences * len(tokens) / total))
        if len(tokens) <= context:
            raise CorpusError(
                f"held-out part {name}: {len(tokens)} tokens are fewer than one sequence of {context + 1}; "
                "lower model.context or give more text"
            )
        starts = np.linspace(0, len(tokens) - context - 1, share).astype(np.int64)
        windows.append(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))
    return torch.from_numpy(np.concatenate(windows))
