"""How far an optimizer step moves each parameter, and what Adam's second moment says; without a copy for Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from trimtab.probe import AdamProbe, wide
from trimtab.watching.parameters import local

CHUNK = {"cpu": 1 << 17, "cuda": 1 << 24}


class StepMeter:
    """Measures one optimizer step: call ``before`` and ``after`` it.

    For torch's Adam and AdamW the update is computed from the state that the step leaves behind. For any other
    optimizer, and for parameters in half precision, they are copied before a step that is read, which takes their
    memory once more.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, adam_probes: Sequence[AdamProbe]) -> None:
        self.optimizer = optimizer
        self.adam_probes = tuple(adam_probes)
        self._copies: dict[int, Tensor] = {}

    def before(self) -> None:
        """Copy what the step's own state will not tell."""
        self._copies = {
            id(p): local(p.detach()).clone()
            for group in self.optimizer.param_groups
            for p in group["params"]
            # In half precision a step is rounded away in part: what was done is not what Adam meant.
            if p.grad is not None and (not _is_plain_adam(self.optimizer, group) or p.element_size() < 4)
        }

    def after(self) -> dict[int, Tensor]:
        """By the id of each updated parameter: squares of the update, squares of the parameter, Adam sums, (2 + P,)."""
        found: dict[int, Tensor] = {}
        for group in self.optimizer.param_groups:
            plain = _is_plain_adam(self.optimizer, group)
            for p in cast("list[nn.Parameter]", group["params"]):
                if plain and p.grad is not None and self.optimizer.state.get(p):
                    found[id(p)] = self._of_adam(p, p.grad, group)
                if id(p) in self._copies:
                    now = local(p.detach()).to(wide(p))
                    step = now - self._copies[id(p)]
                    moved = torch.stack((step.square().sum(), now.square().sum()))
                    found[id(p)] = torch.cat((moved, found[id(p)][2:])) if id(p) in found else moved
        self._copies = {}
        return found

    def _of_adam(self, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.optimizer.state[p]
        beta1, beta2 = group["betas"]
        # Wide, as 1 - beta^step loses digits at the first steps.
        step = state["step"].to(p.device, wide(p)) if isinstance(state["step"], Tensor) else state["step"]
        first_debt, second_debt = 1 - beta1**step, 1 - beta2**step
        rate, eps = group["lr"], group["eps"]
        kept = 1 - rate * group["weight_decay"] if group.get("decoupled_weight_decay", False) else 1.0
        flat = [local(x.detach()).reshape(-1) for x in (p, gradient, state["exp_avg"], state["exp_avg_sq"])]
        total = torch.zeros(2 + len(self.adam_probes), device=p.device, dtype=wide(p))
        size = CHUNK.get(p.device.type, CHUNK["cuda"])
        for weight, grad, first, second in zip(*(x.split(size) for x in flat), strict=True):
            fair = second / second_debt
            adam = (first / first_debt).div_(fair.sqrt().add_(eps)).mul_(rate)
            # After the step only the new weight is there: w = kept * w_old - adam.
            moved = adam if kept == 1.0 else adam + (weight + adam) * ((1 - kept) / kept)
            # The sum of a chunk in its own dtype, the sum over chunks in float64.
            total[0] += torch.dot(moved, moved)
            total[1] += torch.dot(weight, weight)
            for place, probe in enumerate(self.adam_probes):
                total[2 + place] += probe.total(grad, fair, eps)
        return total


def has_moments(optimizer: torch.optim.Optimizer) -> bool:
    """Whether every group follows Adam as torch has it, so that its state tells the update."""
    return all(_is_plain_adam(optimizer, group) for group in optimizer.param_groups)


def _is_plain_adam(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    plain: tuple[Callable[..., Any], ...] = (torch.optim.Adam, torch.optim.AdamW)
    return type(optimizer) in plain and not group.get("amsgrad") and not group.get("maximize")
