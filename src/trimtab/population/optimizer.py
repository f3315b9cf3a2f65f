"""The contract of a stacked optimizer, and a stacked AdamW: every model of a population has its own LR."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from trimtab.optim import AdamW, OptimizerConfig, TrainedParameter
from trimtab.optim.contract import by_rate
from trimtab.population.stack import NotStackableError


class StackedOptimizer(Protocol):
    """Updates stacked parameters from their gradients."""

    def step(self, multiplier: float, active: Tensor) -> None:
        """One step with every LR times ``multiplier``; models for which ``active`` (K,) is False stay as they are."""
        ...


def stacked_optimizer(
    config: OptimizerConfig,
    members: Sequence[TrainedParameter],
    stacked: Mapping[str, Tensor],
    learning_rates: Sequence[float],
) -> StackedOptimizer:
    """The optimizer of a population.

    Args:
        config: the settings.
        members: the trained parameters of one model, which give parts and decay.
        stacked: the stacked parameters by name.
        learning_rates: the peak LR of each model.

    Raises:
        NotStackableError: if the optimizer has no stacked form.
        OptimizerError: as for ``OptimizerConfig.build``.
    """
    if isinstance(config, AdamW):
        return StackedAdamW(config, members, stacked, learning_rates)
    raise NotStackableError(f"the optimizer {config.slug()} has no stacked form")


class StackedAdamW:
    """AdamW (arXiv 1711.05101) on stacked parameters, in the order of operations of torch."""

    def __init__(
        self,
        config: AdamW,
        members: Sequence[TrainedParameter],
        stacked: Mapping[str, Tensor],
        learning_rates: Sequence[float],
    ) -> None:
        self.config = config
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []  # parameter, LR of each model, decay of each model
        for rate, share, group in by_rate(members, config.rates, config.decay):
            for member in group:
                parameter = stacked[member.name]
                rates = [learning_rate * rate for learning_rate in learning_rates]
                decays = [config.decay.of_group(config.weight_decay, share, one) for one in rates]
                self.rows.append((parameter, _column(rates, parameter), _column(decays, parameter)))
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
            parameter.copy_(torch.where(active.view(-1, *(1,) * (parameter.ndim - 1)), new, parameter))


def _column(values: Sequence[float], parameter: Tensor) -> Tensor:
    """One number for each model, shaped so that it multiplies the stacked parameter."""
    column = torch.tensor(values, dtype=torch.float32, device=parameter.device)
    return column.view(-1, *(1,) * (parameter.ndim - 1))
