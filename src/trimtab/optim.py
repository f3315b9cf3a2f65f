"""The optimizer's parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101).

    Attributes:
        weight_decay: on family matrices only; biases, norms and parameters of methods never decay.
        decay: ``coupled`` shrinks by LR x weight_decay a step (torch's AdamW); ``independent`` by
            weight_decay x LR / peak LR, so that the peak LR has no say in it.

    Raises:
        ValueError: if a beta is outside [0, 1), or eps or weight_decay is negative or not finite.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: Literal["coupled", "independent"] = "coupled"

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("eps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Linear warm-up to the peak LR, then a decay to ``floor`` x peak at the last step.

    Raises:
        ValueError: if warmup_steps is negative or floor is outside 0 to 1.
    """

    shape: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 30
    floor: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must lie between 0 and 1, got {self.floor}")

    def factor(self, step: int, num_steps: int) -> float:
        """LR over peak LR at a step counted from 0; the peak falls on step ``warmup_steps``."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / max(1, num_steps - 1 - self.warmup_steps)
        return self.floor + (1 - self.floor) * _DECAY[self.shape](min(1.0, progress))


_DECAY = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}


def adamw(
    model: nn.Module, config: OptimizerConfig, learning_rate: float, *, exempt: Collection[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """AdamW over two groups: matrices decay; everything else, and all of ``exempt``, does not."""
    spared = {id(parameter) for parameter in exempt}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in trainable if p.ndim >= 2 and id(p) not in spared]
    others = [p for p in trainable if p.ndim < 2 or id(p) in spared]
    decay = config.weight_decay / (learning_rate if config.decay == "independent" else 1.0)
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
