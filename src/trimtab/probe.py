"""The contract of a probe: a pure function from what passes to a few mergeable statistics, with unit and source.

A probe never reads a number back to the host; everything it returns stays on the device of what it was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Cost = Literal["cheap", "standard", "full", "named"]
CHUNK = 1 << 18  # entries looked at together: their float64 copy stays in the cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What every probe says about itself.

    Attributes:
        slug: the last part of its metric keys.
        unit: of the value.
        meaning: what it tells, in one sentence.
        source: the paper or code it follows; empty for plain statistics.
        cost: the cheapest preset that contains it; ``named`` is in no preset and is read where its slug asks for it.
        meter: the class of ``trimtab.watching.Meter`` that reads this kind of probe; None for the kinds in this module,
            which the meters of trimtab serve.
    """

    meter: ClassVar[type[Any] | None] = None

    slug: str
    unit: str
    meaning: str
    source: str = ""
    cost: Cost


@dataclass(frozen=True, slots=True)
class Moments:
    """Power sums of tensors, each (N,) in float64, for N tensors; the finite entries that were looked at count.

    Attributes:
        count: finite entries looked at.
        entries: entries the tensor has, looked at or not.
        non_finite: entries looked at that were NaN or infinite.
        total, squares, cubes, fourths: sums of the first four powers.
        largest: of the magnitudes.
    """

    count: Tensor
    entries: Tensor
    non_finite: Tensor
    total: Tensor
    squares: Tensor
    cubes: Tensor
    fourths: Tensor
    largest: Tensor

    @classmethod
    def of(cls, sums: Tensor, largest: Tensor) -> Moments:
        """From their sums (N, 7), in the order of the fields, and the largest magnitudes (N,)."""
        count, entries, non_finite, total, squares, cubes, fourths = sums.unbind(1)
        return cls(count, entries, non_finite, total, squares, cubes, fourths, largest)


NUM_SUMS = 7  # of the fields of Moments, all but the last


def measure(x: Tensor, *, high: bool = True) -> Float[Tensor, 8]:
    """The moments of one tensor of any shape, in float64; NaN and infinities are counted and left out.

    Args:
        x: the tensor.
        high: whether third and fourth powers are wanted; else those sums are 0.
    """
    total = x.new_zeros(8, dtype=wide(x))
    for piece in x.reshape(-1).split(CHUNK):
        if piece.numel():
            found = measure_rows(piece[None], high=high)[0]
            total[:NUM_SUMS] += found[:NUM_SUMS]
            total[NUM_SUMS] = torch.maximum(total[NUM_SUMS], found[NUM_SUMS])
    return total


def measure_rows(x: Float[Tensor, "N M"], *, high: bool = True) -> Float[Tensor, "N 8"]:
    """The moments of N tensors of the same size, as ``measure`` gives them."""
    # By arithmetic, as tests of single entries are ten times slower on a CPU: x - x is 0, or NaN where x is not finite.
    bad = (x - x).nan_to_num_(nan=1.0).sum(1, dtype=wide(x))  # in half precision it would saturate
    sound = x.nan_to_num(0.0, 0.0, 0.0)
    low, top = sound.amin(1), sound.amax(1)
    y = sound.to(wide(x))
    square = y * y
    sums = [x.shape[1] - bad, bad * 0 + x.shape[1], bad, y.sum(1), square.sum(1)]
    if high:
        sums += [(square * y).sum(1), square.square_().sum(1)]
    else:
        sums += [bad * 0, bad * 0]
    return torch.stack([*(one.to(y.dtype) for one in sums), torch.maximum(top, -low).to(y.dtype)], dim=1)


def sample_rows(x: Tensor, num_rows: int | None) -> Tensor:
    """At most ``num_rows`` of the rows (all axes but the last), always the same ones for a shape; None takes all."""
    rows = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(1, -1)
    if num_rows is None or len(rows) <= num_rows:
        return rows
    return rows.index_select(0, spread(len(rows), num_rows, x.device))


@cache
def spread(size: int, num: int, device: torch.device) -> Tensor:
    """``num`` different indices below ``size``, spread evenly, and over all positions of a sequence alike."""
    # An even stride would meet the same few positions of every sequence; steps of the golden ratio do not.
    step = max(1, round(size * 0.6180339887))
    while math.gcd(step, size) != 1:
        step += 1
    return torch.arange(num, device=device) * step % size


def wide(x: Tensor) -> torch.dtype:
    """The dtype to add up in: float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorProbe(Probe):
    """A statistic of any tensor, from its moments.

    Attributes:
        value: (N,) numbers from the moments of N tensors.
        from_norm: whether count and squares suffice, so that a fused norm of a weight or gradient can give it.
        high: whether it needs third and fourth powers.
    """

    value: Callable[[Moments], Tensor]
    from_norm: bool = False
    high: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionProbe(Probe):
    """A statistic of attention per head.

    Attributes:
        rows: from scores BHRS after edits, which are visible (broadcast to BHRS), and weights BHRS to one number a
            row, BHR.
        merge: how rows, sequences, micro-batches and ranks combine.
    """

    rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    merge: Literal["mean", "max"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitProbe(Probe):
    """A statistic of output logits: one number (R,) for each row of (R, V), averaged."""

    rows: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateProbe(Probe):
    """A number from the sums of squares of an update and of its weight, each (N,)."""

    value: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamProbe(Probe):
    """A statistic of one parameter's second moment in Adam.

    Attributes:
        total: a sum over entries, from gradient, bias-corrected second moment, and eps.
        value: (N,) numbers from N sums over the entries' counts.
    """

    total: Callable[[Tensor, Tensor, float], Tensor]
    value: Callable[[Tensor], Tensor] = lambda mean: mean


@dataclass(frozen=True, kw_only=True, slots=True)
class TableProbe(Probe):
    """Statistics of a table of token vectors.

    Attributes:
        rows: one number a token from its vector, (N, D) to (N,).
        values: statistics by name from the numbers of the whole vocabulary, (V,).
    """

    rows: Callable[[Tensor], Tensor]
    values: Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixProbe(Probe):
    """A statistic of weight matrices from the squares of spectral and of Frobenius norm, each (N,)."""

    value: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelProbe(Probe):
    """Statistics of all parameters together.

    Attributes:
        values: statistics by name, first those of weights and then those of biases, from the weight matrices and from
            the biases of a model; a statistic that there is not is left out.
    """

    values: Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[dict[str, Tensor], dict[str, Tensor]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientNoiseProbe(Probe):
    """A statistic of the micro-batch gradients g_k of a step.

    Attributes:
        value: from the sum of ||g_k||^2, ||sum of g_k||^2, and the number of micro-batches.
    """

    value: Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A set of probes with its cadence.

    Attributes:
        every: optimizer steps from one reading to the next.
        rows: token rows looked at per tensor and forward pass; None for all.
        query_rows: query positions at which attention is looked at; None for all.
        gradients: whether gradients of the linear layers' inputs and outputs are read.
    """

    name: str
    probes: tuple[Probe, ...]
    every: int
    rows: int | None
    query_rows: int | None
    gradients: bool
    deep_weights: bool
