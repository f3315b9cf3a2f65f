"""Which token positions are looked at where not all are, and how far the mean over them may be from that over all.

The first positions of a sequence are unlike all others in trained models (attention sinks), so they are a stratum that
is always read whole. The other positions are divided into cells of consecutive positions, and one position is drawn
from each: the mean follows any trend along the sequence. Neighbouring cells differ by the trend as well as by chance,
so that the standard error, which is taken from these differences, is rather too large than too small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

FIRST = 4  # positions that are always read
NUM_SUMS = 5
NUM_STOCK = 8  # samples drawn together


@dataclass(frozen=True, slots=True)
class Sample:
    """Positions of B sequences.

    Attributes:
        rows: positions that are looked at, (B, R): the first ones, then one from each cell, in order.
        weights: how many positions each of them stands for, (B, R); 0 where it stands for none.
        num_drawn: how many of the R positions were drawn; 0 if every position is looked at.
        spread: factor of each sequence's squared differences of neighbouring drawn positions in the variance, (B,).
    """

    rows: Tensor
    weights: Tensor
    num_drawn: int
    spread: Tensor


class Sampler:
    """Draws positions by a generator of its own: the random streams of the training run stay as they are.

    Without padding it draws several samples of a shape ahead.

    Args:
        seed: gives the seed of the generator at the first draw; processes of one training need different ones.
    """

    def __init__(self, seed: Callable[[], int] = lambda: 0) -> None:
        self._seed = seed
        self._generator: torch.Generator | None = None
        self._shape: tuple[int, int, int, torch.device] | None = None
        self._stock: list[Sample] = []

    def draw(
        self, num_sequences: int, length: int, num_rows: int | None, valid: Tensor | None, device: torch.device
    ) -> Sample:
        """The first positions of each sequence and ``num_rows`` others.

        Args:
            num_sequences: sequences in the batch (B).
            length: positions of each (T).
            num_rows: positions to draw from each sequence beside the first ones; None takes all.
            valid: (B, T), false where a position is padding, which is not counted; None if there is none.
            device: of the result.
        """
        if num_rows is None or length <= FIRST + num_rows:
            rows = torch.arange(length, device=device).expand(num_sequences, length)
            weights = torch.ones(rows.shape, device=device) if valid is None else valid.float()
            return Sample(rows, weights, 0, torch.zeros(num_sequences, device=device))
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self._seed())
        if valid is None:
            shape = (num_sequences, length, num_rows, device)
            if not self._stock or shape != self._shape:
                self._shape = shape
                self._stock = _without_padding(num_sequences, length, num_rows, device, self._generator)
            return self._stock.pop()
        draws = torch.rand(num_sequences, num_rows, generator=self._generator).to(device)
        counts = valid.sum(1)
        begin, size, weights, spread = _cells_of(counts, num_rows)
        ranks = torch.cat((_first(device).expand(num_sequences, FIRST), begin + (draws * size).long()), 1)
        order = valid.long().argsort(dim=1, descending=True, stable=True)  # the positions that count, then padding
        return Sample(order.gather(1, ranks.clamp(max=length - 1)), weights, num_rows, spread)


def _without_padding(
    num_sequences: int, length: int, num_rows: int, device: torch.device, generator: torch.Generator
) -> list[Sample]:
    """Several samples by the few operations of one, each of which starts from cold caches in a training step."""
    begin, size, weights, spread = _cells(length, num_rows, device)
    draws = torch.rand(NUM_STOCK, num_sequences, num_rows, generator=generator).to(device)
    first = _first(device).expand(NUM_STOCK, num_sequences, FIRST)
    rows = torch.cat((first, begin + (draws * size).long()), 2)
    weights = weights.expand(rows.shape[1:])
    spread = spread.expand(num_sequences)
    return [Sample(each, weights, num_rows, spread) for each in rows.unbind()]


@cache
def _first(device: torch.device) -> Tensor:
    return torch.arange(FIRST, device=device)


@cache
def _cells(length: int, num_rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _cells_of(torch.tensor([length], device=device), num_rows)


def _cells_of(counts: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First rank and size of each cell (B, num_rows), weights (B, R), and spread (B,), of B sequences."""
    rest = (counts - FIRST).clamp(min=0)
    edges = torch.arange(num_rows + 1, device=counts.device) * rest[:, None] // num_rows
    size = edges.diff(dim=1)
    weights = torch.cat(((_first(counts.device) < counts[:, None]).long(), size), 1).float()
    share = (num_rows / rest.clamp(min=1)).clamp(max=1)  # a cell of one position leaves nothing to chance
    differences = num_rows / (2 * max(1, num_rows - 1))
    spread = differences * (1 - share) * (rest / num_rows) ** 2
    return FIRST + edges[:, :-1], size, weights, spread


def sums_of(numbers: Tensor, counted: Tensor, sample: Sample) -> Tensor:
    """What a mean and its standard error need, in float64 where the device has it; sums of several samples add up.

    Args:
        numbers: one for each position that is looked at, (B, H, R), 0 where it does not count.
        counted: whether each number belongs to the mean, (B, H, R).
        sample: the positions.

    Returns:
        (5, H): estimated total and count over all positions; variances and covariance of their errors.
    """
    dtype = torch.float32 if numbers.device.type == "mps" else torch.float64
    y = numbers.to(dtype)
    c = counted.to(dtype)
    weights = sample.weights[:, None].to(dtype)
    totals = [(y * weights).sum((0, 2)), (c * weights).sum((0, 2))]
    if sample.num_drawn < 2:
        return torch.stack([*totals, *(totals[0] * 0 for _ in range(3))])
    change_y = y[..., -sample.num_drawn :].diff(dim=-1)
    change_c = c[..., -sample.num_drawn :].diff(dim=-1)
    spread = sample.spread[:, None, None].to(dtype)
    pairs = ((change_y, change_y), (change_y, change_c), (change_c, change_c))
    return torch.stack([*totals, *((a * b * spread).sum((0, 2)) for a, b in pairs)])


def estimate(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, its standard error and count, each (H,), from sums (5, H); NaN where the count is 0."""
    total, count, of_total, of_both, of_count = sums
    mean = total / count
    variance = of_total - 2 * mean * of_both + mean.square() * of_count
    return mean, variance.clamp(min=0).sqrt() / count, count
