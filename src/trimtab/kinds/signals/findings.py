"""What a study of signals found, as plain data."""

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
    """One run.

    Attributes:
        outcome_label: derived from its outcome by the criterion.
        fails: None where it is evidence of nothing.
    """

    trial: Trial
    run_id: str
    outcome: Outcome | None
    outcome_label: Label
    fails: bool | None
    trace: Trace


@dataclass(frozen=True, slots=True)
class Related:
    """How one signal goes with another, over some of the runs.

    Attributes:
        runs: which: a line of the study, or "" for all.
        signal, against: names of the two.
        over_time: mean over runs of the correlation over the readings of a run.
        of_changes: the same of the changes from one reading to the next, in which a common trend is no agreement.
        across: between runs of one size and text at equal step, at the fractions asked for, pooled.
        partial: between runs of one size and text at equal step that have the same learning rate and weight decay.
    """

    runs: str
    signal: str
    against: str
    over_time: Correlation
    of_changes: Correlation
    across: Correlation
    partial: Correlation


@dataclass(frozen=True, slots=True)
class Predicted:
    """How well signals up to a fraction of the run tell its end, beside loss and gradient norm.

    Attributes:
        gain: area beyond that of loss and gradient norm on the same pairs.
        untrained: pairs that no model could be fitted for; they count as ties.
    """

    predictor: str
    fraction: float
    area: Area
    gain: Area
    untrained: int


@dataclass(frozen=True, slots=True)
class SignalCost:
    """What the two signals take, in shares of an ordinary step: per reading, and spread over all steps.

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
    """Everything a study of signals found."""

    spec: SignalsSpec
    evidence: Evidence
    runs: Sequence[SignalRun]
    related: Sequence[Related]
    predicted: Sequence[Predicted]
    costs: Mapping[str, SignalCost]
    warnings: Sequence[str]
