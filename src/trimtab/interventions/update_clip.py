r"""Update clipping: shrink the update of a tensor whose gradient has outgrown its second moment.

.. math:: \Delta_i \leftarrow \Delta_i / \max(1, \mathrm{RMS}_i / d), \qquad
          \mathrm{RMS}_i = \sqrt{\mathrm{mean}\, (g_i^2 / \max(u_i, \epsilon^2))}

This is the rule of StableAdamW for the updates of any optimizer. With a steady gradient the RMS is 1, and nothing
changes. After a jump of the gradient the second moment u is too small for some time, and the update is smaller by this
factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.gradients import statistics_dtype, sums_over_shards
from trimtab.intervention import RunningUpdateRule, Source, Trained, UpdateRule
from trimtab.sharding import local


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateClip(UpdateRule):
    """Divide the update of each tensor by the RMS of its gradient relative to its second moment, if that exceeds 1.

    The rule keeps a second moment of its own, whatever the optimizer keeps, and a copy of the weights during the step:
    twice the memory of the parameters. Decoupled weight decay is not part of the update and stays as it is. The update
    from a gradient with an entry that is not finite is dropped; the moments of the optimizer take it in all the same,
    so put a gradient rule that removes it before, such as ``ada_gc``.

    Attributes:
        threshold: the RMS above which an update is clipped ("d"); no clipping as threshold -> inf.
        beta2: decay of the second moment.
        eps: square root of the smallest second moment that a gradient is divided by.

    Raises:
        ValueError: if a setting is out of its range.
    """

    threshold: float = 1.0
    beta2: float = 0.99
    eps: float = 1e-8
    source: ClassVar[Source] = Source(
        title="Stable and low-precision training for large-scale vision-language models",
        arxiv="2304.13013",
        place="algorithm 2 (StableAdamW), applied after the step",
        equation="W <- W + dW / max(1, RMS), RMS = sqrt(mean(g^2 / max(u, eps^2)))",
        deviations=(
            "for any optimizer: the paper's rule is a part of AdamW",
            "the second moment is the rule's own; with AdamW of the same beta2 it equals that of AdamW",
            "eps is 1e-8; the authors' optimizer has 1e-6",
            "an update from a gradient that is not finite is dropped and enters no second moment",
        ),
    )

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"threshold must be positive and finite, got {self.threshold}")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 must be at least 0 and below 1, got {self.beta2}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive and finite, got {self.eps}")

    @override
    def start(self, trained: Trained) -> RunningUpdateRule:
        if trained.optimizer is None:
            raise ValueError("update_clip follows the steps of an optimizer; give it one")
        return _Clip(self, trained.parameters, trained.optimizer)


class _Clip(RunningUpdateRule):
    """Second moments by parameter.

    Attributes:
        seconds: second moments of the entries that this process holds.
        steps: finite gradients so far, () each.
    """

    def __init__(
        self, config: UpdateClip, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        self.config = config
        self.optimizer = optimizer
        self.seconds = {n: torch.zeros_like(local(p.detach()), dtype=_wide(p)) for n, p in parameters.items()}
        self.steps = {
            n: torch.zeros((), device=p.device, dtype=statistics_dtype(p.device)) for n, p in parameters.items()
        }
        self._olds: dict[str, Tensor] = {}
        self._rms: dict[str, Tensor] = {}

    @override
    @torch.no_grad()
    def before_step(self, step: int, parameters: Mapping[str, nn.Parameter]) -> None:
        moving = {name: p for name, p in parameters.items() if p.grad is not None}
        self._olds = {name: local(p.detach()).clone() for name, p in moving.items()}
        seconds: dict[str, Tensor] = {}
        sums: list[Tensor] = []
        for name, p in moving.items():
            square = local(cast(Tensor, p.grad)).to(self.seconds[name].dtype).square()
            beta, t = self.config.beta2, self.steps[name] + 1
            debiased = beta * (1 - beta ** (t - 1)) / (1 - beta**t)
            seconds[name] = torch.lerp(square, self.seconds[name], debiased.to(square.dtype))
            sums.append((square / seconds[name].clamp(min=self.config.eps**2)).sum())
        if not moving:
            return
        totals = sums_over_shards(torch.stack([s.to(sums[0].device) for s in sums]), list(moving.values()))
        sizes = totals.new_tensor([p.numel() for p in moving.values()])
        self._rms = dict(zip(moving, (totals / sizes).sqrt().unbind(), strict=True))
        for name, second in seconds.items():
            sound = self._rms[name].isfinite().to(second.device)
            self.seconds[name] = torch.where(sound, second, self.seconds[name])
            self.steps[name] = self.steps[name] + sound

    @override
    @torch.no_grad()
    def __call__(self, step: int, parameters: Mapping[str, nn.Parameter]) -> None:
        decays = _decays_of(self.optimizer)
        for name, old in self._olds.items():
            weight = local(parameters[name].detach())
            rms = self._rms[name].to(weight.device)
            base = old * (1 - decays.get(id(parameters[name]), 0.0))
            clipped = base + (weight - base) / (rms / self.config.threshold).to(weight.dtype)
            # Selects: a weight that became NaN in this step must not pass through a product.
            kept = torch.where(rms <= self.config.threshold, weight, clipped)
            weight.copy_(torch.where(rms.isfinite(), kept, base))
        self._olds, self._rms = {}, {}

    @override
    def state_dict(self) -> dict[str, object]:
        return {
            "second_moment": {name: x.clone() for name, x in self.seconds.items()},
            "steps": {name: x.clone() for name, x in self.steps.items()},
        }

    @override
    def load_state_dict(self, state: dict[str, object]) -> None:
        seconds, steps = (cast("dict[str, Tensor]", state.get(key, {})) for key in ("second_moment", "steps"))
        for name in sorted(self.seconds.keys() | seconds.keys()):
            mine, found = self.seconds.get(name), seconds.get(name)
            if mine is None or found is None or mine.shape != found.shape or name not in steps:
                raise ValueError(f"update_clip: the state has another set of parameters, or another shape, at '{name}'")
        self.seconds = {name: seconds[name].to(mine).clone() for name, mine in self.seconds.items()}
        self.steps = {name: steps[name].to(mine).clone() for name, mine in self.steps.items()}


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


def _decays_of(optimizer: torch.optim.Optimizer) -> dict[int, Any]:
    """By the id of a parameter, the share of its weight that the optimizer's decoupled decay takes away in a step."""
    decays: dict[int, Any] = {}
    for part in getattr(optimizer, "parts", (optimizer,)):
        for group in part.param_groups:
            if group.get("decoupled_weight_decay") or isinstance(part, torch.optim.Muon):
                share = group["lr"] * group.get("weight_decay", 0.0)
                decays |= dict.fromkeys((id(p) for p in group["params"]), share)
    return decays
