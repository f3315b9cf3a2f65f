r"""MuonH: Muon on the sphere, which keeps the Frobenius norm of every hidden matrix.

.. math:: W' = W - \eta \lVert W \rVert\, U / \lVert U \rVert, \qquad W \leftarrow W' \lVert W \rVert / \lVert W' \rVert

U is the orthogonalized momentum. A step turns a matrix by an angle of about the LR, whatever the size of the matrix.
The norm cannot grow, so there is no weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from typing_extensions import override

from trimtab.optim.adamw import AdamW
from trimtab.optim.contract import OptimizerConfig, OptimizerError, TrainedParameter, by_rate, check_range
from trimtab.optim.matrices import OrthogonalMomentum, by_layout, matrices_of
from trimtab.optim.muon import beside_adamw, hidden_and_rest, within


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class MuonH(OptimizerConfig):
    """Muon that keeps the norm of every hidden matrix; AdamW for embedding, head, norms, biases and gains of methods.

    The LR is an angle in radians. Parts of a fused matrix and matrices of a stack keep their norms one by one.

    Attributes:
        momentum: momentum of the gradient ("mu").
        nesterov: whether the momentum is Nesterov momentum.
        ns_steps: number of Newton-Schulz iterations, which run in bf16.
        adamw_rate: peak LR of the AdamW part, divided by that of the hidden matrices.
        adamw: settings of the AdamW part. Its ``rates`` must stay 1; set ``rates`` of ``muon_h``.

    Raises:
        ValueError: if momentum is outside [0, 1), ns_steps is not 1 to 99, or a number is negative or not finite.
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    adamw_rate: float = 1.0
    adamw: AdamW = field(default_factory=AdamW, metadata={"tagged": False})

    def __post_init__(self) -> None:
        check_range(self, "momentum", 0, 1)
        check_range(self, "ns_steps", 1, 100)
        check_range(self, "adamw_rate", 0, math.inf)
        if self.adamw.rates.changed():
            raise ValueError("adamw.rates: give the factors as rates of muon_h, which apply to both parts")

    @classmethod
    @override
    def slug(cls) -> str:
        return "muon_h"

    @override
    def build(self, parameters: Sequence[TrainedParameter], learning_rate: float) -> torch.optim.Optimizer:
        hidden, rest = hidden_and_rest(parameters, self.slug())
        for one in hidden:
            weight = one.parameter.detach()
            matrices = matrices_of(weight, one.rows, int(one.transposed))
            if not weight.is_meta and not all(bool(matrix.flatten(-2).any(-1).all()) for matrix in matrices):
                raise OptimizerError(
                    f"optimizer.muon_h: {one.name} is zero, and a step that keeps the norm of a matrix never moves it; "
                    "use muon, or an initial weight that is not zero"
                )
        self.rates.check({part for parameter in parameters for part in parameter.parts})
        settings = {"momentum": self.momentum, "nesterov": self.nesterov, "ns_steps": self.ns_steps, "keep_norm": True}
        groups = [
            {"params": [member.parameter for member in members], "lr": learning_rate * rate, **layout, **settings}
            for rate, _, group in by_rate(hidden, within(self.rates, hidden))
            for layout, members in by_layout(group)
        ]
        optimizer = OrthogonalMomentum(groups, learning_rate)
        return beside_adamw(optimizer, rest, self.adamw, self.rates, learning_rate * self.adamw_rate)
