"""The findings of a study of limits, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trimtab.kinds.max_lr.spec import EdgeName, MaxLrSpec
from trimtab.run.folder import Outcome
from trimtab.section import Finite
from trimtab.stats.sensitivity import Sensitivity
from trimtab.study.kind import Evidence
from trimtab.study.labels import Label
from trimtab.study.trial import Trial

CriterionName = Literal["half_d", "d", "double_d", "collapse", "collapse_at_entropy", "strict"]
MAIN: Mapping[EdgeName, CriterionName] = {"quality": "d", "collapse": "collapse"}  # the criterion of each edge
Bound = Literal["above", "below", "no_single_edge", "never_learned", "no_data", "undetermined", "other_optimizer"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A learning rate or a ratio of two: posterior median and 95 % interval.

    Attributes:
        estimate: the median; a bound where ``bound`` is ``above`` or ``below``; None for every other ``bound``.
        low, high: ends of the interval; None for an end outside the tested range.
        bound: None for an ordinary estimate. ``above``: the value is at least ``estimate``. ``below``: the value is at
            most ``estimate``. Every other value is the reason why there is no estimate.
    """

    estimate: float | None
    low: float | None
    high: float | None
    bound: Bound | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """The LR at which half of the runs fail (LR50), and the LR at which a tenth of the runs fail (LR10)."""

    lr50: Estimate
    lr10: Estimate


@dataclass(frozen=True, slots=True)
class CriterionFindings:
    """The results of one arm under one criterion.

    Attributes:
        breaks: limits; of the criteria of quality, measured against the best loss of the arm.
        usable: limits measured against the best loss of the reference; at a line of collapse the same as ``breaks``.
        ratio: ratios of ``breaks`` to the reference.
        p_value: of the LR50 ratio, before Holm's correction; None without a ratio.
        p_holm: the same p-value after Holm's correction.
    """

    breaks: Limit
    usable: Limit
    ratio: Limit
    p_value: float | None
    p_holm: float | None


@dataclass(frozen=True, slots=True)
class Posterior:
    """The posterior of log2 LR50 on a grid; empty if the arm has no posterior."""

    log2_lr50: tuple[Finite, ...] = ()
    probability: tuple[Finite, ...] = ()


@dataclass(frozen=True, slots=True)
class EdgeFindings:
    """One of the two edges of an arm.

    Attributes:
        visible_shift: smallest difference to the reference that these data can detect with power 0.8, in octaves.
        isotonic_lr50: LR50 by isotonic regression, a check without a parametric model; infinite if the failure rate
            never crosses one half.
        width: s of the logistic curve, in octaves.
        pooled: whether the arm's own runs show a sharp edge, so that the other arms inform its width.
        group: letters; two arms without a common letter differ, familywise 5 % over all pairs of the edge.
        slope: change of the final loss (at most the unigram entropy) within one octave of LR50, in nats per octave.
        spread: standard deviation about that line of the runs that have not collapsed, in nats.
        shape: ``cliff`` if the slope exceeds two margins per octave, otherwise ``slope``; None if not known.
        failures: number of failing runs.
        late: share of them that began to fail in the last fifth of the steps.
        posterior: of LR50.
    """

    visible_shift: float | None
    isotonic_lr50: float | None
    width: Estimate | None
    pooled: bool
    group: str
    slope: float | None
    spread: float | None
    shape: Literal["cliff", "slope"] | None
    failures: int
    late: Finite
    posterior: Posterior


@dataclass(frozen=True, slots=True)
class ArmFindings:
    """The results of one arm.

    Attributes:
        best_loss: lowest mean final loss at a single LR of phase 1, in nats.
        bracketed: whether rates below and above the best LR were swept. If not, the best loss and every number that is
            relative to it depend on where the sweep began or ended.
        tested: lowest and highest LR of the sweep and its extensions.
        one_edge: whether the estimate of the quality edge is not below that of the collapse edge; then they are one.
    """

    method: str
    best_loss: float
    best_lr: float
    bracketed: bool
    tested: tuple[Finite, Finite]
    one_edge: bool
    lr_sensitivity: Sensitivity
    counts: Mapping[str, int]
    criteria: Mapping[CriterionName, CriterionFindings]
    edges: Mapping[EdgeName, EdgeFindings]


@dataclass(frozen=True, slots=True)
class Pair:
    """The comparison of two arms at an edge.

    Attributes:
        ratio: LR50 of ``arm`` over that of ``other``, for a comparison that was planned.
        visible_shift: smallest difference of the two that these data can detect with power 0.8, in octaves.
        probability: that LR50 of ``arm`` is above that of ``other``; not corrected for the number of pairs.
        p_holm: two-sided p-value, corrected by Holm's method over all pairs of the edge.
    """

    arm: str
    other: str
    ratio: Estimate
    visible_shift: Finite
    probability: Finite
    p_holm: Finite


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The fresh runs of an arm at one edge.

    Attributes:
        lr: the estimated LR50 that is checked, rounded to 1/16 octave.
        below, above: runs an octave below and an octave above it: failures, and runs with evidence.
        holds: whether less than half of the runs fail below, and more than half above; None without such runs.
    """

    arm: str
    edge: EdgeName
    lr: Finite
    below: tuple[int, int]
    above: tuple[int, int]
    holds: bool | None


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """One run of the study."""

    trial: Trial
    run_id: str
    label: Label
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class LimitFindings:
    """The findings of a study of limits, with the data they are computed from.

    Attributes:
        learned: whether the best loss of the reference is below unigram entropy; if not, no limit is estimated.
        reference_loss: best loss of the reference, in nats.
        seed_sd: standard deviation of the final loss between seeds at the same LR, near the best, pooled over arms, in
            nats; nan if not measured.
        collapse_line: final loss above which a run has collapsed, in nats; the same for all arms.
        pairs: for each edge, all pairs of arms with a limit.
        confirmed: what runs with unseen seeds say about the limits; empty without a confirmation.
    """

    spec: MaxLrSpec
    evidence: Evidence
    learned: bool
    reference_loss: float
    unigram_entropy: float
    log_vocab: float
    seed_sd: float
    collapse_line: float
    pairs: Mapping[EdgeName, Sequence[Pair]]
    confirmed: Sequence[Confirmed]
    arms: Mapping[str, ArmFindings]
    runs: Sequence[LabelledRun]
    warnings: Sequence[str]
