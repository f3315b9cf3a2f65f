"""Muon of a population: the matrices of all models are orthogonalized by one iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.optim import Muon, TrainedParameter
from trimtab.optim.matrices import FACTORS, orthogonalized
from trimtab.optim.muon import adamw_of, within
from trimtab.population.optimizer import StackedAdamW, columns_of, kept


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A hidden matrix of all models.

    Attributes:
        name: of the stacked parameter, (K, rows, columns); (K, S, rows, columns) if a model has a stack of matrices.
        rows: the outputs of each part, if parts share the matrix.
        outputs: the dimension of the outputs, counted from the end.
        rate: the LR of each model, of the shape of the parameter with sizes of 1.
        decay: the weight decay of each model.
        momentum: the momentum of the gradient.
    """

    name: str
    rows: tuple[slice | Tensor, ...]
    outputs: int
    rate: Tensor
    decay: Tensor
    momentum: Tensor


class StackedMuon:
    """Muon on stacked parameters, with AdamW for those that are not hidden matrices.

    Args:
        config: the settings.
        members: the trained parameters of one model, which give parts, layout and decay.
        stacked: the stacked parameters by name.
        learning_rates: the peak LR of each model.

    Raises:
        OptimizerError: as for ``Muon.build``.
    """

    advances_rules = False

    def __init__(
        self,
        config: Muon,
        members: Sequence[TrainedParameter],
        stacked: Mapping[str, Tensor],
        learning_rates: Sequence[float],
    ) -> None:
        self.config = config
        self.stacked = stacked
        hidden, rest = config.divided(members)
        self.matrices: list[_Matrix] = []
        rates = within(config.rates, hidden)
        for member, rate, decay in columns_of(hidden, rates, config, stacked, learning_rates):
            momentum, outputs = torch.zeros_like(stacked[member.name]), -1 if member.transposed else -2
            self.matrices.append(_Matrix(member.name, member.rows, outputs, rate, decay, momentum))
        adamw = adamw_of(rest, config.adamw, config.rates)
        others = [learning_rate * config.adamw_rate for learning_rate in learning_rates]
        self.adamw = StackedAdamW(adamw, rest, stacked, others) if rest else None

    @torch.no_grad()
    def step(self, multiplier: float) -> None:
        """One step."""
        for matrix in self.matrices:
            parameter = self.stacked[matrix.name]
            if parameter.grad is not None:
                self._step(matrix, parameter, parameter.grad, multiplier)
        if self.adamw is not None:
            self.adamw.step(multiplier)

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with the state of these models."""
        self.matrices = [kept(matrix, indices) for matrix in self.matrices]
        if self.adamw is not None:
            self.adamw.keep(indices)

    def _step(self, matrix: _Matrix, parameter: Tensor, gradient: Tensor, multiplier: float) -> None:
        config = self.config
        matrix.momentum.lerp_(gradient, 1 - config.momentum)
        update = gradient.lerp(matrix.momentum, config.momentum) if config.nesterov else matrix.momentum
        rate = matrix.rate * multiplier
        parameter.mul_(1 - rate * matrix.decay)
        for rows in matrix.rows or (slice(None),):
            where = (..., rows, slice(None)) if matrix.outputs == -2 else (..., rows)
            part = update[where]
            turned = orthogonalized(part.flatten(0, -3), config.ns_steps).view(part.shape)
            parameter[where] -= rate * FACTORS[config.factor](part.shape) * turned
