"""AdamW (arXiv 1711.05101): Adam with weight decay that is decoupled from the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from typing_extensions import override

from trimtab.optim.contract import Decay, OptimizerConfig, TrainedParameter, by_rate, check_range


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW(OptimizerConfig):
    """torch's AdamW, with weight decay on matrices of the model family and no decay on other parameters.

    Attributes:
        weight_decay: coefficient of the decay. Biases, norms and gains of methods never decay.
        decay: factors of the decay by part, such as ``{ embedding = 0 }``; ``"independent"`` for a decay that does not
            depend on the peak LR.

    Raises:
        ValueError: if a beta is outside [0, 1), or eps or weight_decay is negative or not finite.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: Decay = field(default_factory=Decay)

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
    def check(self, parameters: Sequence[TrainedParameter], learning_rate: float) -> None:
        by_rate(parameters, self.rates, self.decay)

    @override
    def build(self, parameters: Sequence[TrainedParameter], learning_rate: float) -> torch.optim.Optimizer:
        groups = [
            {
                "params": [member.parameter for member in members],
                "lr": learning_rate * rate,
                "weight_decay": self.decay.of_group(self.weight_decay, share, learning_rate * rate),
            }
            for rate, share, members in by_rate(parameters, self.rates, self.decay)
        ]
        # fused: one kernel updates all parameters, also on the CPU.
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)
