"""Optimizers of a population, in which every model has its own LR: a stacked AdamW, and any other model by model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from trimtab.loop import BASE_LR
from trimtab.optim import AdamW, Muon, TrainedParameter
from trimtab.optim.contract import Rates, by_rate
from trimtab.population.stack import Stack


class StackedOptimizer(Protocol):
    """Updates the models of a population from their gradients."""

    @property
    def advances_rules(self) -> bool:
        """Whether its steps advance the weight rules of the models, as every optimizer of torch does."""
        ...

    def step(self, multiplier: float) -> None:
        """One step with every LR times ``multiplier``."""
        ...

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with these models only, which the stack has kept."""
        ...


class EachAlone:
    """Any optimizer: one of torch for each model, on the views of that model.

    Args:
        stack: the population.
        build: builds the optimizer of a model, given its index.
    """

    advances_rules = True

    def __init__(self, stack: Stack, build: Callable[[int], torch.optim.Optimizer]) -> None:
        self.stack = stack
        self.optimizers = [build(index) for index in range(len(stack.models))]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault(BASE_LR, group["lr"])

    def step(self, multiplier: float) -> None:
        """One step of every optimizer."""
        self.stack.share_gradients()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group[BASE_LR] * multiplier
            optimizer.step()

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with the optimizers of these models."""
        self.optimizers = [self.optimizers[index] for index in indices]


class StackedAdamW:
    """AdamW (arXiv 1711.05101) on stacked parameters, in the order of operations of torch.

    Args:
        config: the settings.
        members: the trained parameters of one model, which give parts and decay.
        stacked: the stacked parameters by name, which the stack replaces when it keeps some of the models.
        learning_rates: the peak LR of each model.

    Raises:
        OptimizerError: as for ``AdamW.build``.
    """

    advances_rules = False

    def __init__(
        self,
        config: AdamW,
        members: Sequence[TrainedParameter],
        stacked: Mapping[str, Tensor],
        learning_rates: Sequence[float],
    ) -> None:
        self.config = config
        self.stacked = stacked
        self.rows = [
            _Row(
                member.name, rate, decay, torch.zeros_like(stacked[member.name]), torch.zeros_like(stacked[member.name])
            )
            for member, rate, decay in columns_of(members, config.rates, config, stacked, learning_rates)
        ]
        self.steps = 0

    @torch.no_grad()
    def step(self, multiplier: float) -> None:
        """One step."""
        config = self.config
        self.steps += 1
        first = 1 - config.beta1**self.steps
        second = math.sqrt(1 - config.beta2**self.steps)
        for row in self.rows:
            parameter = self.stacked[row.name]
            if parameter.grad is None:
                continue
            grad = parameter.grad
            row.average.lerp_(grad, 1 - config.beta1)
            row.square.mul_(config.beta2).addcmul_(grad, grad, value=1 - config.beta2)
            now = row.rate * multiplier
            parameter.mul_(1 - now * row.decay)
            parameter -= now / first * (row.average / (row.square.sqrt() / second + config.eps))

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with the state of these models."""
        self.rows = [kept(row, indices) for row in self.rows]


@dataclass(frozen=True, slots=True)
class _Row:
    """A stacked parameter: its name, and for each model the LR, the weight decay and the moments of the gradient."""

    name: str
    rate: Tensor
    decay: Tensor
    average: Tensor
    square: Tensor


_State = TypeVar("_State")


def kept(state: _State, indices: Sequence[int]) -> _State:
    """A dataclass whose tensors have one entry for each model, with the entries of some models."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(cast(Any, state))}
    return type(state)(
        **{name: value[list(indices)] if isinstance(value, Tensor) else value for name, value in fields.items()}
    )


def columns_of(
    members: Sequence[TrainedParameter],
    rates: Rates,
    config: AdamW | Muon,
    stacked: Mapping[str, Tensor],
    learning_rates: Sequence[float],
) -> Iterator[tuple[TrainedParameter, Tensor, Tensor]]:
    """Each parameter with the LR and the weight decay of every model, shaped so that they multiply its stack."""
    for rate, share, group in by_rate(members, rates, config.decay):
        of_models = [learning_rate * rate for learning_rate in learning_rates]
        decays = [config.decay.of_group(config.weight_decay, share, one) for one in of_models]
        for member in group:
            parameter = stacked[member.name]
            yield member, _column(of_models, parameter), _column(decays, parameter)


def _column(values: Sequence[float], parameter: Tensor) -> Tensor:
    """One number for each model, shaped so that it multiplies the stacked parameter."""
    column = torch.tensor(values, dtype=torch.float32, device=parameter.device)
    return column.view(-1, *(1,) * (parameter.ndim - 1))
