r"""ZClip: clip the global gradient norm where its z-score among recent norms is high.

.. math:: z = (g - \mu) / \sigma, \qquad g \leftarrow \mu + \sigma z_0^2 / z \quad \text{if } z > z_0

At :math:`z = z_0` nothing changes; the larger the outlier, the closer its clipped norm is to the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.gradients import Gradients, statistics_dtype
from trimtab.intervention import GradientRule, RunningRule, Source

FIELDS = ("count", "mean", "variance")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ZClip(GradientRule):
    """Clip the global norm by its z-score. It replaces global clipping: leave ``global_clip`` out.

    If the global norm is not finite, all gradients become zero, and the statistics stay as they are.

    Attributes:
        z_threshold: the z-score above which a norm is clipped ("z_thres").
        decay: decay of the moving mean and variance ("alpha").
        warmup_steps: steps of plain clipping, whose norms start mean and variance.
        max_norm: bound of the norm at every step, during the warm-up and after it.
        clip_factor: factor of the norm to which an outlier is clipped.
        eps: added to the standard deviation, and to the norm that gradients are divided by.

    Raises:
        ValueError: if a setting is out of its range.
    """

    z_threshold: float = 2.5
    decay: float = 0.97
    warmup_steps: int = 25
    max_norm: float = 1.0
    clip_factor: float = 1.0
    eps: float = 1e-6
    replaces: ClassVar[frozenset[str]] = frozenset({"global_clip", "ada_gc"})
    source: ClassVar[Source] = Source(
        title="ZClip: Adaptive Spike Mitigation for LLM Pre-Training",
        arxiv="2504.02507",
        place="algorithm 1, and the authors' code",
        equation="g <- mean + 2.5^2 std / z where z = (g - mean) / std > 2.5; g <- min(g, 1)",
        deviations=(
            "a norm that is not finite makes all gradients zero and enters no statistic; in the authors' code one NaN "
            "makes mean and variance NaN, after which only the cap acts",
            "norms are computed in fp32; the authors use the dtype of the parameters",
            "mean and variance are saved with the training",
        ),
    )

    def __post_init__(self) -> None:
        for name in ("z_threshold", "max_norm", "clip_factor", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay}")
        if not 2 <= self.warmup_steps <= 10**8:
            raise ValueError(f"warmup_steps must lie between 2 and 100,000,000, got {self.warmup_steps}")

    @classmethod
    def as_published(cls) -> Self:
        """The authors' settings, which are the defaults; the deviations concern norms that are not finite."""
        return cls()

    @override
    def start(self, parameters: Mapping[str, nn.Parameter]) -> RunningRule:
        return _Scores(self, next(iter(parameters.values()), torch.zeros(())))


class _Scores:
    """Mean and variance of the norms.

    Attributes:
        count: finite norms so far, (). A tensor, because only the device knows whether a norm is finite.
    """

    def __init__(self, config: ZClip, like: Tensor) -> None:
        self.config = config
        dtype = statistics_dtype(like.device)
        self.count, self.mean, self.variance = torch.zeros(3, device=like.device, dtype=dtype).unbind()

    @torch.no_grad()
    def __call__(self, step: int, parameters: Mapping[str, nn.Parameter]) -> Tensor | None:
        config = self.config
        gradients = Gradients.of(parameters)
        total = gradients.total()
        if not gradients.present:
            return total
        norm = total.to(self.mean)
        sound = norm.isfinite()
        warm = self.count >= config.warmup_steps
        deviation = self.variance.sqrt()
        score = (norm - self.mean) / (deviation + config.eps)
        outlier = warm & (score > config.z_threshold)
        limit = (self.mean + config.z_threshold**2 * deviation / score) * config.clip_factor
        seen = torch.where(outlier, limit, norm)
        effective = seen.clamp(max=config.max_norm)
        gradients.scale(torch.where(effective < norm, effective / (norm + config.eps), 1.0), ~sound)
        self._learn(seen, sound, warm)
        return total

    def _learn(self, seen: Tensor, sound: Tensor, warm: Tensor) -> None:
        decay = self.config.decay
        # The warm-up: mean and population variance of the norms so far (Welford).
        change = seen - self.mean
        early_mean = self.mean + change / (self.count + 1)
        early_variance = self.variance + (change * (seen - early_mean) - self.variance) / (self.count + 1)
        late_mean = decay * self.mean + (1 - decay) * seen
        late_variance = decay * self.variance + (1 - decay) * (seen - late_mean).square()
        # Selects, not products: what is not finite must leave no trace.
        self.mean = torch.where(sound, torch.where(warm, late_mean, early_mean), self.mean)
        self.variance = torch.where(sound, torch.where(warm, late_variance, early_variance), self.variance)
        self.count = self.count + sound

    def state_dict(self) -> dict[str, object]:
        return {"count": self.count.clone(), "mean": self.mean.clone(), "variance": self.variance.clone()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        if set(state) != set(FIELDS):
            raise ValueError(f"z_clip: the state must have {', '.join(FIELDS)}; it has {', '.join(sorted(state))}")
        for name in FIELDS:
            setattr(self, name, cast(Tensor, state[name]).to(self.mean).clone())
