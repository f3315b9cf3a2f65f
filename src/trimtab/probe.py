"""The contract of a probe: a pure function from tensors to a few mergeable statistics, with unit and source.

A probe never reads a number back to the host: everything it returns stays on the device of its input.
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
CHUNK = 1 << 18  # entries measured together: their float64 copy stays in the cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What all kinds of probe have in common.

    Attributes:
        slug: the last part of its metric keys.
        unit: of the value.
        meaning: what the value tells, in one sentence.
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
    """Power sums of N tensors, each (N,) in float64, over the finite entries that were looked at.

    Attributes:
        count: finite entries that were looked at.
        entries: all entries of the tensor, looked at or not.
        non_finite: entries that were looked at and were NaN or infinite.
        total, squares, cubes, fourths: sums of the first four powers.
        largest: largest magnitude.
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
        """Moments from sums (N, 7), in the order of the fields, and largest magnitudes (N,)."""
        count, entries, non_finite, total, squares, cubes, fourths = sums.unbind(1)
        return cls(count, entries, non_finite, total, squares, cubes, fourths, largest)


NUM_SUMS = 7  # the fields of Moments that are sums: all but the last


def measure(x: Tensor, *, high: bool = True) -> Float[Tensor, 8]:
    """The moments of one tensor of any shape, in float64; NaN and infinities are counted and left out.

    Args:
        x: the tensor.
        high: whether to add up third and fourth powers; if not, those sums are 0.
    """
    total = x.new_zeros(8, dtype=wide(x))
    for piece in x.reshape(-1).split(CHUNK):
        if piece.numel():
            measured = measure_rows(piece[None], high=high)[0]
            total[:NUM_SUMS] += measured[:NUM_SUMS]
            total[NUM_SUMS] = torch.maximum(total[NUM_SUMS], measured[NUM_SUMS])
    return total


def measure_rows(x: Float[Tensor, "N M"], *, high: bool = True) -> Float[Tensor, "N 8"]:
    """The moments of N tensors of the same size, each row as ``measure`` gives it."""
    # isfinite is ten times slower than arithmetic on a CPU: x - x is 0, or NaN where x is not finite.
    bad = (x - x).nan_to_num_(nan=1.0).sum(1, dtype=wide(x))  # a sum in half precision would saturate
    sound = x.nan_to_num(0.0, 0.0, 0.0)
    low = sound.amin(1)
    top = sound.amax(1)
    y = sound.to(wide(x))
    square = y * y
    sums = [x.shape[1] - bad, bad * 0 + x.shape[1], bad, y.sum(1), square.sum(1)]
    if high:
        sums += [(square * y).sum(1), square.square_().sum(1)]
    else:
        sums += [bad * 0, bad * 0]
    return torch.stack([*(column.to(y.dtype) for column in sums), torch.maximum(top, -low).to(y.dtype)], dim=1)


def sample_rows(x: Tensor, num_rows: int | None) -> Tensor:
    """At most ``num_rows`` rows of a tensor, the same rows for every tensor of a shape; None takes all.

    A row is a vector along the last axis.
    """
    rows = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(1, -1)
    if num_rows is None or len(rows) <= num_rows:
        return rows
    return rows.index_select(0, spread(len(rows), num_rows, x.device))


@cache
def spread(size: int, num: int, device: torch.device) -> Tensor:
    """``num`` different indices below ``size``, spread evenly over the rows and over the positions of a sequence."""
    # An even stride would select the same few positions of every sequence; steps of the golden ratio do not.
    step = max(1, round(size * 0.6180339887))
    while math.gcd(step, size) != 1:
        step += 1
    return torch.arange(num, device=device) * step % size


def wide(x: Tensor) -> torch.dtype:
    """The dtype of sums: float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorProbe(Probe):
    """A statistic of any tensor that follows from its moments.

    Attributes:
        value: the statistic (N,) from the moments of N tensors.
        from_norm: whether count and squares suffice, so that a fused norm of a weight or gradient gives the statistic.
        high: whether the statistic needs third and fourth powers.
    """

    value: Callable[[Moments], Tensor]
    from_norm: bool = False
    high: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionProbe(Probe):
    """A statistic of attention per head.

    Attributes:
        rows: one number per row, BHR, from scores BHRS after edits, a mask of visible keys (broadcast to BHRS), and
            weights BHRS.
        merge: how the numbers of rows, sequences, micro-batches and processes are combined.
    """

    rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    merge: Literal["mean", "max"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitProbe(Probe):
    """A statistic of output logits.

    Attributes:
        rows: one number per row, (R,), from logits (R, V); the numbers are averaged.
    """

    rows: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateProbe(Probe):
    """A statistic of the update that one optimizer step makes.

    Attributes:
        value: the statistic (N,) from the sums of squares of N updates and of their weights, each (N,).
    """

    value: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamProbe(Probe):
    """A statistic of one parameter's second moment in Adam.

    Attributes:
        total: a sum over entries, from gradient, second moment with bias correction, and eps.
        value: the statistic (N,) from that sum over the number of entries, for N parameters.
    """

    total: Callable[[Tensor, Tensor, float], Tensor]
    value: Callable[[Tensor], Tensor] = lambda mean: mean


@dataclass(frozen=True, kw_only=True, slots=True)
class TableProbe(Probe):
    """Statistics of a table of token vectors.

    Attributes:
        rows: one number per token, (N,), from the vectors of N tokens (N, D).
        values: statistics by name, from the numbers of the whole vocabulary (V,).
    """

    rows: Callable[[Tensor], Tensor]
    values: Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixProbe(Probe):
    """A statistic of weight matrices.

    Attributes:
        value: the statistic (N,) from the squared spectral and Frobenius norms of N matrices, each (N,).
    """

    value: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelProbe(Probe):
    """Statistics of all parameters together.

    Attributes:
        values: statistics of weights by name and statistics of biases by name, from the weight matrices and the biases
            of a model; a statistic that does not exist is left out.
    """

    values: Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[dict[str, Tensor], dict[str, Tensor]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientNoiseProbe(Probe):
    """A statistic of the micro-batch gradients g_k of a step.

    Attributes:
        value: the statistic from the sum of ||g_k||^2, from ||sum of g_k||^2, and from the number of micro-batches.
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
        deep_weights: whether all moments of weights are read, and not only their norms.
    """

    name: str
    probes: tuple[Probe, ...]
    every: int
    rows: int | None
    query_rows: int | None
    gradients: bool
    deep_weights: bool
