r"""Muon (Keller Jordan, 2024): orthogonalized momentum for hidden matrices, AdamW for all other parameters.

.. math:: W \leftarrow W - \eta\, c\, \mathrm{NewtonSchulz}(\mu B + G)

Every singular value of the orthogonalized momentum is near 1, so the update has a similar size in every direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
from typing_extensions import override

from trimtab.optim.adamw import AdamW
from trimtab.optim.composite import CompositeOptimizer
from trimtab.optim.contract import Decay, OptimizerConfig, OptimizerError, Rates, TrainedParameter, by_rate, check_range
from trimtab.optim.matrices import OrthogonalMomentum, by_layout


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Muon(OptimizerConfig):
    """Muon for the hidden matrices, AdamW for embedding, head, norms, biases and gains of methods.

    If a model family stores queries, keys and values in one matrix, each of them is orthogonalized by itself; so is
    each matrix of a stack, such as the experts of a layer.

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
    decay: Decay = field(default_factory=Decay)
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
        hidden, rest = self.divided(parameters)
        groups = [
            {
                "params": [member.parameter for member in members],
                "lr": learning_rate * rate,
                "weight_decay": self.decay.of_group(self.weight_decay, share, learning_rate * rate),
                "factor": self.factor,
                **layout,
            }
            for rate, share, group in by_rate(hidden, within(self.rates, hidden), self.decay)
            for layout, members in by_layout(group)
        ]
        momentum = {"momentum": self.momentum, "nesterov": self.nesterov, "ns_steps": self.ns_steps}
        matrices = OrthogonalMomentum([momentum | group for group in groups], learning_rate)
        return beside_adamw(matrices, rest, self.adamw, self.rates, learning_rate * self.adamw_rate)

    @property
    def factor(self) -> str:
        """The name of the factor of an update, see ``FACTORS``."""
        return "match_rms" if self.match_rms else "original"

    def divided(self, parameters: Sequence[TrainedParameter]) -> tuple[list[TrainedParameter], list[TrainedParameter]]:
        """The hidden matrices, and the parameters of AdamW.

        Raises:
            OptimizerError: if there is no known hidden matrix, or Muon cannot scale the matrices as they are stored.
        """
        hidden, rest = hidden_and_rest(parameters, self.slug())
        if not self.match_rms and any(parameter.transposed for parameter in hidden):
            raise OptimizerError(
                "optimizer.muon: this model stores its matrices as (in, out), and sqrt(max(1, rows / columns)) would "
                "be taken the wrong way round; set match_rms = true"
            )
        self.rates.check({part for parameter in parameters for part in parameter.parts})
        return hidden, rest


def hidden_and_rest(
    parameters: Sequence[TrainedParameter], slug: str
) -> tuple[list[TrainedParameter], list[TrainedParameter]]:
    """The hidden matrices and all other parameters.

    Raises:
        OptimizerError: if there is no known hidden matrix, or one is neither a matrix nor a stack of matrices.
    """
    hidden = [parameter for parameter in parameters if parameter.hidden]
    if not hidden:
        raise OptimizerError(
            f"optimizer.{slug}: this model has no known hidden matrix, because no host knows the model; use adamw"
        )
    return hidden, [parameter for parameter in parameters if not parameter.hidden]


def within(rates: Rates, parameters: Sequence[TrainedParameter]) -> Rates:
    """The rates of the parts that these parameters have; 1 for all other parts."""
    present = {part for parameter in parameters for part in parameter.parts}
    return replace(rates, **{part.value: 1.0 for part in rates.changed() if part not in present})


def beside_adamw(
    matrices: torch.optim.Optimizer, rest: Sequence[TrainedParameter], adamw: AdamW, rates: Rates, learning_rate: float
) -> torch.optim.Optimizer:
    """An optimizer of matrices together with AdamW for the other parameters, if there are any."""
    config = adamw_of(rest, adamw, rates)
    return CompositeOptimizer(matrices, config.build(rest, learning_rate)) if rest else matrices


def adamw_of(rest: Sequence[TrainedParameter], adamw: AdamW, rates: Rates) -> AdamW:
    """The settings of AdamW for the parameters that are not hidden matrices."""
    adamw.decay.check({part for parameter in rest if parameter.decays for part in parameter.parts})
    return replace(adamw, rates=within(rates, rest))
