"""The contract of an optimizer: a frozen dataclass of settings that builds a ``torch.optim.Optimizer`` for a model.

The base LR of a parameter group is the peak LR times the factor of the group. The training loop multiplies every base
LR by the schedule.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from trimtab.host import Part


class OptimizerError(ValueError):
    """An optimizer cannot be built for this model. The message gives the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainedParameter:
    """One trained parameter, with the properties that an optimizer depends on.

    Attributes:
        name: the name in ``named_parameters``.
        parts: the parts of the model that own the parameter. There are several if parts share or tie one matrix, and
            none if no host knows the model or the parameter belongs to no part.
        decays: whether weight decay applies. Matrices of the family decay; biases, norms and gains of methods do not.
        hidden: whether it is the matrix of a hidden layer, which excludes embedding and head.
        transposed: whether it is stored as (in, out).
    """

    name: str
    parameter: nn.Parameter
    parts: tuple[Part, ...]
    decays: bool
    hidden: bool
    transposed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Factors of the peak LR by part. A parameter that belongs to no part has factor 1.

    Raises:
        ValueError: if a factor is negative or not finite.
    """

    attn_norm: float = 1.0
    q: float = 1.0
    k: float = 1.0
    v: float = 1.0
    proj: float = 1.0
    mlp_norm: float = 1.0
    fc1: float = 1.0
    fc2: float = 1.0
    final_norm: float = 1.0
    embedding: float = 1.0
    head: float = 1.0

    def __post_init__(self) -> None:
        for part in fields(self):
            if not 0 <= getattr(self, part.name) < math.inf:
                raise ValueError(f"{part.name} must be finite and not negative, got {getattr(self, part.name)}")

    def of(self, parts: Sequence[Part]) -> float:
        """The factor of a parameter that belongs to these parts.

        Raises:
            OptimizerError: if the parts share one matrix and their factors differ.
        """
        factors = {float(getattr(self, part.value)) for part in parts} or {1.0}
        if len(factors) > 1:
            names = " and ".join(part.value for part in parts)
            raise OptimizerError(f"optimizer.rates: {names} share one matrix in this model; give them the same factor")
        return factors.pop()

    def changed(self) -> list[Part]:
        """The parts whose factor is not 1."""
        return [part for part in Part if getattr(self, part.value) != 1.0]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig(ABC):
    """Settings of an optimizer.

    Attributes:
        rates: factors of the peak LR by part, such as ``{ embedding = 0.5 }``.
    """

    rates: Rates = field(default_factory=Rates, metadata={"neutral": Rates()})

    @classmethod
    def slug(cls) -> str:
        """The tag in config tables."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @abstractmethod
    def build(self, parameters: Sequence[TrainedParameter], learning_rate: float) -> torch.optim.Optimizer:
        """The optimizer of these parameters at a peak LR.

        Raises:
            OptimizerError: if the optimizer cannot train them, or a part that ``rates`` names has no parameters.
        """


def by_rate(parameters: Sequence[TrainedParameter], rates: Rates) -> list[tuple[float, bool, list[TrainedParameter]]]:
    """Triples (factor of the LR, whether the group decays, parameters); groups that decay come first.

    Raises:
        OptimizerError: if a part that ``rates`` changes has no parameters.
    """
    present = {part for parameter in parameters for part in parameter.parts}
    for part in rates.changed():
        if part not in present:
            names = ", ".join(sorted(present)) or "none"
            raise OptimizerError(
                f"optimizer.rates.{part.value}: the model has no parameters of this part; it has {names}"
            )
    groups: dict[tuple[bool, float], list[TrainedParameter]] = {}
    for parameter in parameters:
        groups.setdefault((not parameter.decays, rates.of(parameter.parts)), []).append(parameter)
    order = sorted(groups, key=lambda key: key[0])
    return [(rate, not spared, groups[spared, rate]) for spared, rate in order]


def check_range(config: object, name: str, low: float, high: float) -> None:
    """Refuse a setting outside the interval [low, high).

    Raises:
        ValueError: if the setting is outside the interval; the message names it.
    """
    value: Any = getattr(config, name)
    if not low <= value < high:
        above = "finite" if math.isinf(high) else f"below {high:g}"
        raise ValueError(f"{name} must be at least {low:g} and {above}, got {value}")
