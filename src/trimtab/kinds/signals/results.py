"""The part of ``results.json`` of a study of signals, and its ``results.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.kinds.signals.analysis import BAR
from trimtab.kinds.signals.findings import Predicted, Related, SignalCost, SignalFindings
from trimtab.section import Finite, Rows
from trimtab.stats.prediction import Area
from trimtab.stats.rank import Correlation
from trimtab.study.labels import Label
from trimtab.study.settings import Criterion

RELATIONS: Mapping[str, str] = {
    "within": "across seeds, arm and LR fixed",
    "over_time": "over time",
    "of_changes": "of changes",
    "across": "across runs",
    "partial": "across runs, LR and decay fixed",
}


@dataclass(frozen=True, slots=True)
class SignalFacts:
    """The facts that are merged into ``study``."""

    criterion: Criterion


@dataclass(frozen=True, slots=True)
class SignalRunResults:
    """A run; ``fails`` is null if the label says neither."""

    id: str
    arm: str
    lr: Finite
    seed: int
    label: Label
    fails: bool | None
    final_loss: float | None


@dataclass(frozen=True, slots=True)
class SignalResults:
    """The results that are merged into the top level."""

    related: Sequence[Related]
    predicted: Sequence[Predicted]
    costs: Mapping[str, SignalCost]
    runs: Sequence[SignalRunResults]


def facts_of(findings: SignalFindings) -> SignalFacts:
    """Return the facts of the whole study."""
    return SignalFacts(findings.spec.criterion)


def results_of(findings: SignalFindings) -> SignalResults:
    """Return correlations, predictions and runs."""
    runs = [
        SignalRunResults(
            id=run.run_id,
            arm=run.trial.arm,
            lr=run.trial.learning_rate,
            seed=run.trial.seed,
            label=run.outcome_label,
            fails=run.fails,
            final_loss=run.outcome.final_loss if run.outcome else None,
        )
        for run in findings.runs
    ]
    return SignalResults(findings.related, findings.predicted, findings.costs, runs)


def rows_of(findings: SignalFindings) -> Rows:
    """Return one row per correlation or area."""
    columns = ("what", "runs", "signal", "against", "fraction", "estimate", "low", "high", "visible", "count")
    rows: list[list[object]] = []
    for one in findings.related:
        for relation in RELATIONS:
            value: Correlation = getattr(one, relation)
            cells = [value.estimate, value.low, value.high, value.visible, value.units, "", ""]
            rows.append([relation, one.runs, one.signal, one.against, "", *cells])
    for one in findings.predicted:
        for what, against in (("area", ""), ("gain", BAR), ("area_within", ""), ("gain_within", BAR)):
            area: Area = getattr(one, what)
            cells = [area.estimate, area.low, area.high, area.visible, area.pairs, area.same_low, area.same_high]
            rows.append([what, "", one.predictor, against, one.fraction, *cells])
    return Rows([*columns, "same_low", "same_high"], rows)
