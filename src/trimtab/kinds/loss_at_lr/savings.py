"""What an arm saves: the share of the reference's tokens and compute that it does without, to reach the same loss."""

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
    """Over the pairs of an arm's and the reference's runs of one seed."""
    shares: list[float] = []
    for own, other in pairs:
        assert own.outcome is not None
        assert other.outcome is not None
        reached = first_step_at(own.outcome.held_out, other.outcome.final_loss)
        if reached is not None:
            own_tokens, tokens = (_tokens_per_step(spec, run) for run in (own, other))
            shares.append(reached * own_tokens / (other.outcome.steps * tokens))
    dearer = cost.flops_per_token / reference.flops_per_token
    return Saving(
        reached=len(shares),
        seeds=len(pairs),
        tokens=Mean(*mean_interval([1 - share for share in shares])),
        compute=Mean(*mean_interval([1 - share * dearer for share in shares])),
    )


def _tokens_per_step(spec: LossStudySpec, run: ComparedRun) -> int:
    protocol = spec.arms[run.trial.arm].protocol
    return protocol.training.batch_size * protocol.model.context


def first_step_at(curve: Sequence[tuple[int, float]], loss: float) -> float | None:
    """The step, between two evaluations by a straight line, at which a held-out curve first comes down to a loss."""
    before: tuple[int, float] | None = None
    for step, value in curve:
        if value <= loss:
            if before is None or before[1] == value:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - loss) / (before[1] - value)
        before = (step, value) if math.isfinite(value) else before
    return None
