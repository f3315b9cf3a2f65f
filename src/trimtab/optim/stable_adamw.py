r"""StableAdamW (arXiv 2304.13013): AdamW with a smaller step where a gradient has outgrown its second moment.

.. math:: \eta_i = \eta / \max(1, \mathrm{RMS}_i), \qquad
          \mathrm{RMS}_i = \sqrt{\mathrm{mean}\,(g_i^2 / \max(u_i, \epsilon^2))}

It takes the place of gradient clipping: leave ``global_clip`` out (``common = []``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.gradients import sums_over_shards
from trimtab.optim.contract import Decay, OptimizerConfig, TrainedParameter, by_rate, check_range
from trimtab.sharding import local


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class StableAdamW(OptimizerConfig):
    """AdamW with update clipping for each tensor. The decay uses the LR before clipping, as the authors have it.

    Attributes:
        beta1, beta2: decays of the moments; their bias correction is in the decays, as the authors have it.
        eps: added to the root of the second moment; its square is the smallest second moment in the RMS.
        threshold: the RMS above which the step is smaller ("d").
        weight_decay: coefficient of the decay of matrices.
        decay: factors of the decay by part, and its coupling, as in ``adamw``.

    Raises:
        ValueError: if a beta is outside [0, 1), or a number is negative or not finite.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-6
    threshold: float = 1.0
    weight_decay: float = 0.2
    decay: Decay = field(default_factory=Decay)

    def __post_init__(self) -> None:
        check_range(self, "beta1", 0, 1)
        check_range(self, "beta2", 0, 1)
        check_range(self, "eps", 0, math.inf)
        check_range(self, "weight_decay", 0, math.inf)
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"threshold must be positive and finite, got {self.threshold}")

    @classmethod
    @override
    def slug(cls) -> str:
        return "stable_adamw"

    @override
    def build(self, parameters: Sequence[TrainedParameter], learning_rate: float) -> torch.optim.Optimizer:
        settings = {"betas": (self.beta1, self.beta2), "eps": self.eps, "threshold": self.threshold}
        groups = [
            {
                "params": [member.parameter for member in members],
                "lr": learning_rate * rate,
                "weight_decay": self.decay.of_group(self.weight_decay, share, learning_rate * rate),
                **settings,
            }
            for rate, share, members in by_rate(parameters, self.rates, self.decay)
        ]
        return StableAdamWOptimizer(groups, learning_rate)


class StableAdamWOptimizer(torch.optim.Optimizer):
    """The optimizer of ``StableAdamW``; a tensor that is sharded over processes has one RMS."""

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float) -> None:
        defaults = {"betas": (0.9, 0.99), "eps": 1e-6, "threshold": 1.0, "weight_decay": 0.2}
        super().__init__(groups, {"lr": lr, "decoupled_weight_decay": True, **defaults})

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not moving:
            return loss
        sums = [self._moments(p, group) for p, group in moving]
        totals = sums_over_shards(torch.stack([s.to(sums[0].device) for s in sums]), [p for p, _ in moving])
        for (p, group), total in zip(moving, totals.unbind(), strict=True):
            self._move(p, group, (total / p.numel()).sqrt())
        return loss

    def _moments(self, p: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """Advance the moments; the sum of the squared gradient over its second moment, ()."""
        state = self.state[p]
        if not state:
            state["step"] = 0
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        state["step"] += 1
        gradient = local(cast(Tensor, p.grad))
        beta1, beta2 = (
            beta * (1 - beta ** (state["step"] - 1)) / (1 - beta ** state["step"]) for beta in group["betas"]
        )
        local(state["exp_avg"]).lerp_(gradient, 1 - beta1)
        second = local(state["exp_avg_sq"]).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        return (gradient.square() / second.clamp(min=group["eps"] ** 2)).sum()

    def _move(self, p: nn.Parameter, group: dict[str, Any], rms: Tensor) -> None:
        weight, state = local(p), self.state[p]
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        step = local(state["exp_avg"]) / (local(state["exp_avg_sq"]).sqrt() + group["eps"])
        weight.sub_(step * (group["lr"] / (rms / group["threshold"]).clamp(min=1.0)).to(weight))
