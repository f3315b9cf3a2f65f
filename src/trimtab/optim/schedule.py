"""The learning-rate schedule: the factor of the peak LR at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


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
        """LR divided by peak LR, at a step counted from 0. Step ``warmup_steps`` has the peak LR."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / max(1, num_steps - 1 - self.warmup_steps)
        return self.floor + (1 - self.floor) * _DECAY[self.shape](min(1.0, progress))


_DECAY = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}
