r"""Muon (Keller Jordan, 2024): orthogonalized momentum for hidden matrices, AdamW for all other parameters.

.. math:: W \leftarrow W - \eta\, c\, \mathrm{NewtonSchulz}(\mu B + G)

Every singular value of the orthogonalized momentum is near 1, so the update has a similar size in every direction.
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

    If a model family stores queries, keys and values in one matrix, that matrix is orthogonalized as a whole.

    Attributes:
        momentum: momentum of the gradient ("mu").
        nesterov: whether the momentum is Nesterov momentum, as in the equation.
        ns_steps: number of Newton-Schulz iterations, which run in bf16.
        match_rms: true scales each update to the root mean square of an AdamW update (arXiv 2502.16982), so that one LR
            suits both optimizers; false scales it by sqrt(max(1, rows / columns)), and the LR has the scale of the
            original Muon.
        weight_decay, decay: weight decay of the hidden matrices, as in ``adamw``.
        adamw_rate: peak LR of the AdamW part, divided by that of the hidden matrices.
        adamw: settings of the AdamW part. Its ``rates`` must stay 1; set ``rates`` of ``muon``.

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
        hidden = [parameter for parameter in parameters if parameter.hidden]
        if not hidden:
            raise OptimizerError(
                "optimizer.muon: this model has no known hidden matrix, because no host knows the model; use adamw"
            )
        if not self.match_rms and any(parameter.transposed for parameter in hidden):
            raise OptimizerError(
                "optimizer.muon: this model stores its matrices as (in, out), and sqrt(max(1, rows / columns)) would "
                "be taken the wrong way round; set match_rms = true"
            )
        groups = by_rate(parameters, self.rates)
        matrices = [
            {
                "params": members,
                "lr": learning_rate * rate,
                "weight_decay": decayed(self.weight_decay, self.decay, learning_rate * rate) if decays else 0.0,
            }
            for rate, decays, group in groups
            if (members := [member.parameter for member in group if member.hidden])
        ]
        peak = learning_rate * self.adamw_rate
        others = [
            {
                "params": members,
                "lr": peak * rate,
                "weight_decay": decayed(self.adamw.weight_decay, self.adamw.decay, peak * rate) if decays else 0.0,
            }
            for rate, decays, group in groups
            if (members := [member.parameter for member in group if not member.hidden])
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
