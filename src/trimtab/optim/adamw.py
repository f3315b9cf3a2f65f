"""AdamW (arXiv 1711.05101): Adam with weight decay apart from the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from typing_extensions import override

from trimtab.optim.contract import OptimizerConfig, TrainedParameter, by_rate, check_range


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW(OptimizerConfig):
    """torch's AdamW over matrices, which decay, and everything else, which does not.

    Attributes:
        weight_decay: on matrices of the family only; biases, norms and gains of methods never decay.
        decay: ``coupled`` shrinks a weight by LR x weight_decay a step (torch's AdamW); ``independent`` by weight_decay
            x LR / peak LR, so that the shrinkage does not depend on the peak LR.

    Raises:
        ValueError: if a beta is outside [0, 1), or eps or weight_decay is negative or not finite.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: Literal["coupled", "independent"] = "coupled"

    def __post_init__(self) -> None:
        check_range(self, "beta1", 0, 1)
        check_range(self, "beta2", 0, 1)
        check_range(self, "eps", 0, math.inf)
        check_range(self, "weight_decay", 0, math.inf)

    @classmethod
    @override
    def slug(cls) -> str:
        return "adamw"

    @override
    def build(self, parameters: Sequence[TrainedParameter], learning_rate: float) -> torch.optim.Optimizer:
        groups = [
            {
                "params": [one.parameter for one in members],
                "lr": learning_rate * rate,
                "weight_decay": decayed(self.weight_decay, self.decay, learning_rate * rate) if decays else 0.0,
            }
            for rate, decays, members in by_rate(parameters, self.rates)
        ]
        # Fused: one kernel for all parameters, on the CPU too.
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)


def decayed(weight_decay: float, decay: Literal["coupled", "independent"], learning_rate: float) -> float:
    """The decay that torch multiplies with the LR of the step; 0 for a group whose LR is 0."""
    if decay == "coupled":
        return weight_decay
    return weight_decay / learning_rate if learning_rate else 0.0
