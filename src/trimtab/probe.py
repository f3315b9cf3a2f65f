"""The contract of a probe: a pure function from tensors to a few mergeable statistics, with unit and source.

A probe never reads a number back to the host: everything it returns stays on the device of its input.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Cost = Literal["cheap", "standard", "full", "named"]
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}  # entries measured together; copies stay in the cache


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
    """Power sums of N tensors, each (N,) in float64, over their finite entries.

    Attributes:
        count: finite entries.
        non_finite: entries that are NaN or infinite.
        total, squares, cubes, fourths: sums of the first four powers.
        largest: largest magnitude.
    """

    count: Tensor
    non_finite: Tensor
    total: Tensor
    squares: Tensor
    cubes: Tensor
    fourths: Tensor
    largest: Tensor

    @classmethod
    def of(cls, sums: Tensor, largest: Tensor) -> Moments:
        """Moments from sums (N, 6), in the order of the fields, and largest magnitudes (N,)."""
        count, non_finite, total, squares, cubes, fourths = sums.unbind(1)
        return cls(count, non_finite, total, squares, cubes, fourths, largest)


NUM_SUMS = 6  # the fields of Moments that are sums: all but the last


def measure(x: Tensor, *, high: bool = True, entries: Tensor | int | None = None) -> Float[Tensor, 7]:
    """The moments of one tensor of any shape, in float64; NaN and infinities are counted and left out.

    Args:
        x: the tensor.
        high: whether to add up third and fourth powers; if not, those sums are 0.
        entries: how many entries there are, if some of x are zeros that do not count; None for all.
    """
    flat = x.detach().reshape(-1)
    if flat.device.type == "cpu":
        total = _on_cpu(flat, high)
    else:
        measured = torch.stack([_of_piece(piece, high) for piece in flat.split(CHUNK["cuda"])])
        total = torch.cat((measured[:, :NUM_SUMS].sum(0), measured[:, NUM_SUMS:].amax(0)))
    if entries is not None:
        total[0] = entries - total[1]
    return total


def _on_cpu(flat: Tensor, high: bool) -> Tensor:
    """The moments of a flat tensor, in pieces: sums that are finite tell that all entries are."""
    sums = [0.0] * NUM_SUMS
    largest = 0.0
    for piece in flat.split(CHUNK["cpu"]):
        found = _of_sound_piece(piece, high) if len(piece) else None
        if found is None:  # an entry that is not finite, or a power too large
            *found, top = _of_piece(piece, high).tolist() if len(piece) else [0.0] * (NUM_SUMS + 1)
        else:
            *found, top = found
        sums = [total + part for total, part in zip(sums, found, strict=True)]
        largest = max(largest, top)
    return torch.tensor([*sums, largest], dtype=torch.float64)


def _of_sound_piece(x: Tensor, high: bool) -> list[float] | None:
    """The same of a piece whose sums are finite; else None."""
    # Sums and not dot products, which in single precision lose the small entries beside the outliers of trained models.
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    count = float(len(y))
    total = y.sum().item()
    low, top = (end.item() for end in torch.aminmax(y))
    largest = max(top, -low)
    if not high:
        squares = torch.mul(y, y, out=_scratch(y)[0]).sum().item()
        found = [count, 0.0, total, squares, 0.0, 0.0, largest]
        return found if math.isfinite(found[3] + total) else None
    # Powers of the distance to the mean: those of the entries themselves would leave nothing of a small spread.
    mean = total / count
    z, square = _scratch(y)
    torch.sub(y, mean, out=z)
    torch.mul(z, z, out=square)
    first = z.sum().item()  # what rounding leaves
    second = square.sum().item()
    third = z.mul_(square).sum().item()
    fourth = square.square_().sum().item()
    if not math.isfinite(fourth + total):
        return None
    squares = second + 2 * mean * first + count * mean**2
    cubes = third + 3 * mean * second + 3 * mean**2 * first + count * mean**3
    fourths = fourth + 4 * mean * third + 6 * mean**2 * second + 4 * mean**3 * first + count * mean**4
    return [count, 0.0, count * mean + first, squares, cubes, fourths, largest]


class _Buffers(threading.local):
    """Memory for two copies of a piece: to get it from the system anew takes longer than the arithmetic."""

    def __init__(self) -> None:
        self.of: dict[torch.dtype, Tensor] = {}


_BUFFERS = _Buffers()


def _scratch(piece: Tensor) -> tuple[Tensor, Tensor]:
    size = CHUNK["cpu"]
    both = _BUFFERS.of.get(piece.dtype)
    if both is None:
        both = _BUFFERS.of[piece.dtype] = torch.empty(2, size, dtype=piece.dtype)
    return both[0, : len(piece)], both[1, : len(piece)]


def _of_piece(x: Tensor, high: bool) -> Tensor:
    """The moments of a piece without a branch on its values."""
    # isfinite is ten times slower than arithmetic on a CPU: x - x is 0, or NaN where x is not finite.
    bad = (x - x).nan_to_num_(nan=1.0).sum(dtype=wide(x))  # a sum in half precision would saturate
    y = x.nan_to_num(0.0, 0.0, 0.0).to(wide(x))
    square = y * y
    sums = [x.numel() - bad, bad, y.sum(), square.sum()]
    sums += [(square * y).sum(), square.square().sum()] if high else [bad * 0, bad * 0]
    return torch.stack([*sums, y.abs().amax() if len(y) else bad * 0])


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
    """A statistic of attention per head, from the query positions that are sampled.

    Attributes:
        rows: one number per row, BHR, from scores BHRS after edits (minus infinity where a key is hidden), a mask BHRS
            of visible keys, and weights BHRS; a number that is not finite is counted and left out.
        merge: how the numbers of rows, sequences, micro-batches and processes are combined. A mean estimates that over
            all rows, and is read with its standard error; a maximum is that of the sampled rows alone.
    """

    rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    merge: Literal["mean", "max"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreProbe(Probe):
    """A maximum over all attention scores of a head, at every query position.

    Attributes:
        rows: one number per row, BHR, from scores BHRS after edits, minus infinity where a key is hidden or a score is
            not finite. The largest is kept.
    """

    rows: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitProbe(Probe):
    """A statistic of output logits, from the token positions that are sampled.

    Attributes:
        rows: one number per row, (R,), from logits (R, V); their mean estimates that over all rows, and is read with
            its standard error.
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
    """A statistic of the micro-batch gradients g_k of a step, as they are added up.

    Attributes:
        value: the statistic from the sum of ||g_k||^2, from ||sum of g_k||^2, and from the number of micro-batches.
    """

    value: Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Digest:
    """One kind of number in the row of a summary.

    Attributes:
        what: name of the tensor, as in metric keys.
        statistic: slug of the probe, or the name of one of its statistics.
        over: what is merged into one number: the heads of a layer, or all places of the model; None keeps each place.
        merge: how.
    """

    what: str
    statistic: str
    over: Literal["heads", "model"] | None = None
    merge: Literal["max", "min", "sum"] = "max"


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A row of few keys.

    Attributes:
        tensors: names of the tensors whose moments are read, as in metric keys; the others cost nothing.
        digests: the numbers of the row.
    """

    tensors: frozenset[str]
    digests: tuple[Digest, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A set of probes with its cadence.

    Attributes:
        every: optimizer steps from one reading to the next.
        query_rows: query positions drawn from each sequence, beside the first four, at which attention is looked at;
            None for all.
        logit_rows: rows of logits drawn from each batch, beside the first four of each sequence; None for all.
        gradients: whether gradients of the linear layers' inputs and outputs are read.
        deep_weights: whether all moments of weights are read, and not only their norms.
        required: slugs of probes that were asked for by name: it is an error if one of them cannot be read.
        summary: what of a reading is kept, for a row of few keys; None keeps all.
    """

    name: str
    probes: tuple[Probe, ...]
    every: int
    query_rows: int | None
    logit_rows: int | None
    gradients: bool
    deep_weights: bool
    required: frozenset[str] = frozenset()
    summary: Summary | None = None
