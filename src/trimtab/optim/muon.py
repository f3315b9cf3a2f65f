r"""Muon (Keller Jordan, 2024): momentum, made orthogonal, for hidden matrices; AdamW for all other parameters.

.. math:: W \leftarrow W - \eta\, c\, \mathrm{NewtonSchulz}(\mu B + G)

Every singular value of the update is near 1, so that no direction of a matrix is left behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from typing_extensions import override

from trimtab.optim.adamw import AdamW, decayed
from trimtab.optim.composite import CompositeOptimizer
from trimtab.optim.contract import OptimizerConfig, OptimizerError, TrainedParameter, by_rate, check_range


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Muon(OptimizerConfig):
    """torch's Muon for the hidden matrices, AdamW for embedding, head, norms, biases and gains of methods.

    Where a family keeps queries, keys and values in one matrix, that matrix is made orthogonal as one.

    Attributes:
        momentum: of the gradient ("mu").
        ns_steps: Newton-Schulz iterations, in bf16.
        match_rms: scale each update to the root mean square of an AdamW update (arXiv 2502.16982), so that one LR
            serves both; false scales by sqrt(max(1, rows / columns)), and the LR is in Muon's own unit.
        weight_decay, decay: of the hidden matrices, as in ``adamw``.
        adamw_rate: peak LR of the AdamW part, over that of the hidden matrices.
        adamw: settings of the AdamW part. Its own ``rates`` stay 1: use those of ``muon``.

    Raises:
        ValueError: if momentum is outside [0, 1), ns_steps is not 1 to 99, or a number is negative or not finite.
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    match_rms: bool = True
    weight_decay: float = 0.1
    decay: Literal["coupled", "independent"] = "coupled"
    adamw_rate: float = 1.0
    adamw: AdamW = field(default_factory=AdamW, metadata={"tagged": False})

    def __post_init__(self) -> None:
        check_range(self, "momentum", 0, 1)
        check_range(self, "ns_steps", 1, 100)
        check_range(self, "weight_decay", 0, math.inf)
        check_range(self, "adamw_rate", 0, math.inf)
        if self.adamw.rates.changed():
            raise ValueError("adamw.rates: give the factors as rates of muon, which apply to both parts")

    @override
    def build(self, parameters: Sequence[TrainedParameter], learning_rate: float) -> torch.optim.Optimizer:
        hidden = [one for one in parameters if one.hidden]
        if not hidden:
            raise OptimizerError("optimizer.muon: no hidden matrix is known in this model: no host knows it; use adamw")
        groups = by_rate(parameters, self.rates)
        matrices = [
            {
                "params": members,
                "lr": learning_rate * rate,
                "weight_decay": decayed(self.weight_decay, self.decay, learning_rate * rate) if decays else 0.0,
            }
            for rate, decays, some in groups
            if (members := [one.parameter for one in some if one.hidden])
        ]
        peak = learning_rate * self.adamw_rate
        others = [
            {
                "params": members,
                "lr": peak * rate,
                "weight_decay": decayed(self.adamw.weight_decay, self.adamw.decay, peak * rate) if decays else 0.0,
            }
            for rate, decays, some in groups
            if (members := [one.parameter for one in some if not one.hidden])
        ]
        muon = torch.optim.Muon(
            matrices,
            lr=learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            adjust_lr_fn="match_rms_adamw" if self.match_rms else "original",
        )
        if not others:
            return muon
        betas = (self.adamw.beta1, self.adamw.beta2)
        rest = torch.optim.AdamW(others, lr=peak, betas=betas, eps=self.adamw.eps, fused=True)
        return CompositeOptimizer(muon, rest)
