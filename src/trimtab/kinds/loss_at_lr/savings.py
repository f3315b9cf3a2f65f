"""Compute the share of the reference's tokens and compute that an arm saves when it reaches the same loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trimtab.kinds.loss_at_lr.findings import ComparedRun, Mean, Saving
from trimtab.kinds.loss_at_lr.spec import LossStudySpec
from trimtab.run.cost import ModelCost
from trimtab.stats.intervals import mean_interval


def saving_of(
    spec: LossStudySpec, pairs: Sequence[tuple[ComparedRun, ComparedRun]], cost: ModelCost, reference: ModelCost
) -> Saving:
    """Return the saving over pairs of runs: the run of the arm and the run of the reference with the same seed."""
    shares: list[float] = []
    for run, partner in pairs:
        assert run.outcome is not None
        assert partner.outcome is not None
        reached = first_step_at(run.outcome.held_out, partner.outcome.final_loss)
        if reached is not None:
            needed = reached * _tokens_per_step(spec, run)
            shares.append(needed / (partner.outcome.steps * _tokens_per_step(spec, partner)))
    cost_ratio = cost.flops_per_token / reference.flops_per_token
    return Saving(
        reached=len(shares),
        seeds=len(pairs),
        tokens=Mean(*mean_interval([1 - share for share in shares])),
        compute=Mean(*mean_interval([1 - share * cost_ratio for share in shares])),
    )


def _tokens_per_step(spec: LossStudySpec, run: ComparedRun) -> int:
    protocol = spec.arms[run.trial.arm].protocol
    return protocol.training.batch_size * protocol.model.context


def first_step_at(curve: Sequence[tuple[int, float]], loss: float) -> float | None:
    """Return the first step at which a held-out curve reaches a loss, by linear interpolation; None if it does not."""
    before: tuple[int, float] | None = None
    for step, value in curve:
        if value <= loss:
            if before is None or before[1] == value:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - loss) / (before[1] - value)
        before = (step, value) if math.isfinite(value) else before
    return None
