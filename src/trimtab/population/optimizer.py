"""Optimizers of a population, in which every model has its own LR: a stacked AdamW, and any other model by model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

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

    def step(self, multiplier: float, active: Tensor) -> None:
        """One step with every LR times ``multiplier``; models for which ``active`` (K,) is False stay as they are."""
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

    def step(self, multiplier: float, active: Tensor) -> None:
        """One step of every optimizer."""
        self.stack.share_gradients()
        for optimizer, goes_on in zip(self.optimizers, active.tolist(), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = group[BASE_LR] * multiplier
            if goes_on:
                optimizer.step()


class StackedAdamW:
    """AdamW (arXiv 1711.05101) on stacked parameters, in the order of operations of torch.

    Args:
        config: the settings.
        members: the trained parameters of one model, which give parts and decay.
        stacked: the stacked parameters by name.
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
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []  # parameter, LR of each model, decay of each model
        for member, rate, decay in columns_of(members, config.rates, config, stacked, learning_rates):
            self.rows.append((stacked[member.name], rate, decay))
        self.averages = [torch.zeros_like(parameter) for parameter, _, _ in self.rows]
        self.squares = [torch.zeros_like(parameter) for parameter, _, _ in self.rows]
        self.steps = 0

    @torch.no_grad()
    def step(self, multiplier: float, active: Tensor) -> None:
        """One step."""
        config = self.config
        self.steps += 1
        first = 1 - config.beta1**self.steps
        second = math.sqrt(1 - config.beta2**self.steps)
        for (parameter, rate, decay), average, square in zip(self.rows, self.averages, self.squares, strict=True):
            if parameter.grad is None:
                continue
            grad = parameter.grad
            average.lerp_(grad, 1 - config.beta1)
            square.mul_(config.beta2).addcmul_(grad, grad, value=1 - config.beta2)
            now = rate * multiplier
            new = parameter * (1 - now * decay)
            new -= now / first * (average / (square.sqrt() / second + config.eps))
            parameter.copy_(only_active(active, new, parameter))


def only_active(active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new values of the models that are active (K,), and the old ones of the others."""
    return torch.where(active.view(-1, *(1,) * (old.ndim - 1)), new, old)


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
