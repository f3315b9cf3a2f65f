"""What a study of limits found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.run.folder import Outcome
from trimtab.section import Finite
from trimtab.study.kind import Evidence
from trimtab.study.labels import Label
from trimtab.study.trial import Trial

CriterionName = Literal["half_d", "d", "double_d", "strict"]
Bound = Literal["above", "below", "no_clear_boundary", "no_data", "undetermined", "other_optimizer"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A learning rate or a ratio: posterior median and 95 % interval.

    Attributes:
        bound: why there is no plain estimate; ``above``: at least ``estimate``; ``below``: at most.
        low, high: None where the interval leaves the tested range.
    """

    estimate: float | None
    low: float | None
    high: float | None
    bound: Bound | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """The LR at which half of the runs fail, and the one at which a tenth does."""

    lr50: Estimate
    lr10: Estimate


@dataclass(frozen=True, slots=True)
class CriterionFindings:
    """The answers for one arm under one criterion; ``p_value`` is of the LR50 ratio, before and after Holm."""

    breaks: Limit
    usable: Limit
    ratio: Limit
    p_value: float | None
    p_holm: float | None


@dataclass(frozen=True, slots=True)
class Posterior:
    """The probability of LR50 on a grid of its log2; empty where there is none."""

    log2_lr50: tuple[Finite, ...] = ()
    probability: tuple[Finite, ...] = ()


@dataclass(frozen=True, slots=True)
class ArmFindings:
    """The answers for one arm.

    Attributes:
        best_loss: lowest mean final loss at one LR of phase 1, in nats.
        visible_shift: smallest difference to the reference that these data would show, in octaves.
        isotonic_lr50: the model-free check; infinite where the failure rate never crosses a half.
        posterior: of LR50 by the main criterion.
    """

    method: str
    best_loss: float
    best_lr: float
    lr_sensitivity: float
    counts: Mapping[str, int]
    criteria: Mapping[CriterionName, CriterionFindings]
    visible_shift: float | None
    isotonic_lr50: float | None
    edge_width: Estimate | None
    posterior: Posterior


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """One run of the study."""

    trial: Trial
    run_id: str
    label: Label
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class LimitFindings:
    """A study of limits: what was found and all it rests on.

    Attributes:
        learned: whether the reference got below unigram entropy; without that there are no limits.
        reference_loss: best loss of the reference, in nats.
        seed_sd: spread of final losses between seeds at one LR, pooled over arms, in nats; nan if not measured.
    """

    spec: MaxLrSpec
    evidence: Evidence
    learned: bool
    reference_loss: float
    unigram_entropy: float
    log_vocab: float
    seed_sd: float
    arms: Mapping[str, ArmFindings]
    runs: Sequence[LabelledRun]
    warnings: Sequence[str]
