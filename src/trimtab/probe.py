"""The contract of a probe: a pure function from tensors to a few mergeable statistics, with unit and source.

A probe never reads a number back to the host: everything it returns stays on the device of its input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

Cost = Literal["cheap", "standard", "full", "named"]


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
