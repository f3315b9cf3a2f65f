"""The part of ``results.json`` of a study of limits, and its ``results.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.kinds.max_lr.agreement import OrderAgreement
from trimtab.kinds.max_lr.findings import MAIN, ArmFindings, Confirmed, EdgeName, LimitFindings, Pair
from trimtab.kinds.max_lr.movers import MovementResults
from trimtab.section import Finite, Rows
from trimtab.study.labels import Label
from trimtab.study.settings import Criterion


@dataclass(frozen=True, slots=True)
class StopRule:
    """The rule that ends the search of an arm."""

    most_runs: int
    enough: float
    share_collapse: float
    fixed_in_advance: bool = True


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """The facts that are merged into ``study``; ``horizon`` is the number of steps within which runs were judged."""

    reference: str
    learned: bool
    reference_loss: float
    unigram_entropy: float
    log_vocab: float
    seed_sd: float
    collapse_line: float
    reference_bracketed: bool
    horizon: int
    criterion: Criterion
    stop_rule: StopRule


@dataclass(frozen=True, slots=True)
class LimitRun:
    """A run; ``lr`` is the peak LR, losses are in nats."""

    id: str
    arm: str
    lr: Finite
    seed: int
    round: int
    label: Label
    final_loss: float | None
    steps: int
    stopped: str | None


@dataclass(frozen=True, slots=True)
class LimitResults:
    """The results that are merged into the top level."""

    arms: Mapping[str, ArmFindings]
    pairs: Mapping[EdgeName, Sequence[Pair]]
    confirmed: Sequence[Confirmed]
    runs: Sequence[LimitRun]
    reported: OrderAgreement | None
    movers: Mapping[str, MovementResults]


def facts_of(findings: LimitFindings) -> LimitFacts:
    """Return the facts of the whole study."""
    spec = findings.spec
    return LimitFacts(
        reference=spec.reference,
        learned=findings.learned,
        reference_loss=findings.reference_loss,
        unigram_entropy=findings.unigram_entropy,
        log_vocab=findings.log_vocab,
        seed_sd=findings.seed_sd,
        collapse_line=findings.collapse_line,
        reference_bracketed=findings.arms[spec.reference].bracketed,
        horizon=spec.protocol.training.steps,
        criterion=spec.criterion,
        stop_rule=StopRule(spec.search.most_runs, spec.search.enough, spec.search.share_collapse),
    )


def results_of(
    findings: LimitFindings, agreement: OrderAgreement | None, movers: Mapping[str, MovementResults]
) -> LimitResults:
    """Return arms, runs, the comparison with the paper, and the movers."""
    runs = [
        LimitRun(
            id=run.run_id,
            arm=run.trial.arm,
            lr=run.trial.learning_rate,
            seed=run.trial.seed,
            round=run.trial.round,
            label=run.label,
            final_loss=run.outcome.final_loss if run.outcome else None,
            steps=run.outcome.steps if run.outcome else 0,
            stopped=run.outcome.stopped if run.outcome else None,
        )
        for run in findings.runs
    ]
    return LimitResults(findings.arms, findings.pairs, findings.confirmed, runs, agreement, movers)


def rows_of(findings: LimitFindings) -> Rows:
    """Return one row per arm and edge."""
    limits = [(question, level) for question in ("breaks", "usable", "ratio") for level in ("lr50", "lr10")]
    parts = ("estimate", "low", "high", "bound")
    labels = list(next(iter(findings.arms.values())).counts)
    columns = [
        *("arm", "method", "edge", "group", "shape", "nats_per_octave", "spread", "late"),
        *("best_loss", "best_lr", "bracketed", "lr_sensitivity", "lr_sensitivity_low", "lr_sensitivity_high"),
        *(f"{question}_{level}_{part}" for question, level in limits for part in parts),
        *("p_value", "p_holm", *labels),
    ]
    rows: list[list[object]] = []
    for name, arm in findings.arms.items():
        sensitivity = arm.lr_sensitivity
        for edge_name, main in MAIN.items():
            edge, criterion = arm.edges[edge_name], arm.criteria[main]
            estimates = [getattr(getattr(criterion, question), level) for question, level in limits]
            rows.append(
                [
                    *(name, arm.method, edge_name, edge.group, edge.shape, edge.slope, edge.spread, edge.late),
                    *(arm.best_loss, arm.best_lr, arm.bracketed),
                    *(sensitivity.estimate, sensitivity.low, sensitivity.high),
                    *(getattr(estimate, part) for estimate in estimates for part in parts),
                    *(criterion.p_value, criterion.p_holm, *arm.counts.values()),
                ]
            )
    return Rows(columns, rows)
