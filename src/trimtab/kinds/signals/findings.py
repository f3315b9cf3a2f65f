"""The findings of a study of signals, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.kinds.signals.spec import SignalsSpec
from trimtab.kinds.signals.traces import Trace
from trimtab.run.folder import Outcome
from trimtab.stats.prediction import Area
from trimtab.stats.rank import Correlation
from trimtab.study.kind import Evidence
from trimtab.study.labels import Label
from trimtab.study.trial import Trial


@dataclass(frozen=True, slots=True)
class SignalRun:
    """A run of the study.

    Attributes:
        outcome_label: label of the outcome under the criterion.
        fails: whether the run fails; None if the label says neither.
    """

    trial: Trial
    run_id: str
    outcome: Outcome | None
    outcome_label: Label
    fails: bool | None
    trace: Trace


@dataclass(frozen=True, slots=True)
class Related:
    """The rank correlations of two signals.

    Attributes:
        runs: the line of the study whose runs are used; "" for all runs.
        signal, against: names of the two signals.
        within: correlation between runs of the same arm and learning rate at the same step, which differ in their seeds
            alone, pooled over the fractions.
        over_time: correlation over the readings of a run from ``from_fraction`` on, mean over runs.
        of_changes: correlation of the changes between consecutive readings, which a common trend does not affect; mean
            over runs.
        across: correlation between runs of the same size and text at the same step, pooled over the fractions.
        partial: as ``across``, between runs that also have the same learning rate and weight decay.
    """

    runs: str
    signal: str
    against: str
    within: Correlation
    over_time: Correlation
    of_changes: Correlation
    across: Correlation
    partial: Correlation


@dataclass(frozen=True, slots=True)
class Predicted:
    """How well signals up to a fraction of the run predict whether it fails.

    Attributes:
        area: area under the ROC curve.
        gain: area minus the area of loss and gradient norm on the same pairs.
        area_within, gain_within: the same for the pairs of runs of one arm. The other pairs also compare arms.
        untrained: number of pairs for which no model could be fitted; they count as ties.
    """

    predictor: str
    fraction: float
    area: Area
    gain: Area
    area_within: Area
    gain_within: Area
    untrained: int


@dataclass(frozen=True, slots=True)
class SignalCost:
    """The time of the two signals as a share of a step: per reading, and averaged over all steps.

    Attributes:
        step: seconds of a step without a reading, median over runs.
    """

    step: float
    tev: float
    variance: float
    tev_amortised: float
    variance_amortised: float


@dataclass(frozen=True, slots=True)
class SignalFindings:
    """The findings of a study of signals, with the data they are computed from."""

    spec: SignalsSpec
    evidence: Evidence
    runs: Sequence[SignalRun]
    related: Sequence[Related]
    predicted: Sequence[Predicted]
    costs: Mapping[str, SignalCost]
    warnings: Sequence[str]
