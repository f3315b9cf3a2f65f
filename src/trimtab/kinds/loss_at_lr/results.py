"""The part of ``results.json`` of a comparison of losses, and its ``results.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.kinds.loss_at_lr.findings import Compared, LossFindings, Overall, Slope
from trimtab.kinds.loss_at_lr.spec import Comparison
from trimtab.run.cost import ModelCost
from trimtab.section import Finite, Rows


@dataclass(frozen=True, slots=True)
class LossFacts:
    """The facts that are merged into ``study``."""

    reference: str
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class LossRun:
    """A run; ``loss`` is the mean over all blocks, ``final_loss`` the mean over the held-out windows, in nats."""

    id: str
    arm: str
    lr: Finite
    seed: int
    round: int
    loss: float
    final_loss: float | None
    stopped: str | None


@dataclass(frozen=True, slots=True)
class LossResults:
    """The results that are merged into the top level."""

    compared: Sequence[Compared]
    slopes: Sequence[Slope]
    overall: Sequence[Overall]
    costs: Mapping[str, ModelCost]
    runs: Sequence[LossRun]


def facts_of(findings: LossFindings) -> LossFacts:
    """Return the facts of the whole study."""
    return LossFacts(findings.spec.reference, findings.spec.comparison)


def results_of(findings: LossFindings) -> LossResults:
    """Return comparisons, trends and runs."""
    runs = [
        LossRun(
            id=run.run_id,
            arm=run.trial.arm,
            lr=run.trial.learning_rate,
            seed=run.trial.seed,
            round=run.trial.round,
            loss=run.loss,
            final_loss=run.outcome.final_loss if run.outcome else None,
            stopped=run.outcome.stopped if run.outcome else None,
        )
        for run in findings.runs
    ]
    return LossResults(findings.compared, findings.slopes, findings.overall, findings.costs, runs)


def rows_of(findings: LossFindings) -> Rows:
    """Return one row per arm, size and learning rate."""
    parts = ("mean", "low", "high", "p_value", "visible")
    columns = [
        *("arm", "size", "multiple", "learning_rate", "bracketed"),
        *("loss", "loss_low", "loss_high", "perplexity", "bits_per_byte"),
        *(f"difference_{part}" for part in parts),
        *("p_holm", "tokens_saved", "parameters", "flops_per_token", "broken", "missing"),
    ]
    rows: list[list[object]] = []
    for one in findings.compared:
        cost = findings.costs[one.name]
        difference = (
            [None] * len(parts) if one.difference is None else [getattr(one.difference, part) for part in parts]
        )
        saved = None if one.saving is None else one.saving.tokens.mean
        rows.append(
            [
                *(one.place.line, one.place.size, one.multiple, one.learning_rate, one.bracketed),
                *(one.loss.mean, one.loss.low, one.loss.high, one.perplexity, one.bits_per_byte),
                *difference,
                *(one.p_holm, saved, cost.parameters, cost.flops_per_token, one.broken, one.missing),
            ]
        )
    return Rows(columns, rows)
