"""The contract of an optimizer: a frozen dataclass of settings that builds a ``torch.optim.Optimizer`` for a model.

The base LR of a parameter group is the peak LR times the factor of the group. The training loop multiplies every base
LR by the schedule.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

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
        rows: the outputs of each part, if parts share the matrix; empty if one part owns it.
    """

    name: str
    parameter: nn.Parameter
    parts: tuple[Part, ...]
    decays: bool
    hidden: bool
    transposed: bool = False
    rows: tuple[slice | Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Factors:
    """Factors by part. A parameter that belongs to no part has factor 1.

    Raises:
        ValueError: if a factor is negative or not finite.
    """

    setting: ClassVar[str]

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
        for part in Part:
            if not 0 <= getattr(self, part.value) < math.inf:
                raise ValueError(f"{part.value} must be finite and not negative, got {getattr(self, part.value)}")

    def of(self, parts: Sequence[Part]) -> float:
        """The factor of a parameter that belongs to these parts.

        Raises:
            OptimizerError: if the parts share one matrix and their factors differ.
        """
        factors = {float(getattr(self, part.value)) for part in parts} or {1.0}
        if len(factors) > 1:
            names = " and ".join(part.value for part in parts)
            raise OptimizerError(
                f"optimizer.{self.setting}: {names} share one matrix in this model; give them the same factor"
            )
        return factors.pop()

    def changed(self) -> list[Part]:
        """The parts whose factor is not 1."""
        return [part for part in Part if getattr(self, part.value) != 1.0]

    def check(self, present: Collection[Part]) -> None:
        """Refuse a factor of a part that has no parameters.

        Raises:
            OptimizerError: if there is such a factor; the message names the parts that there are.
        """
        for part in self.changed():
            if part not in present:
                names = ", ".join(sorted(present)) or "none"
                raise OptimizerError(
                    f"optimizer.{self.setting}.{part.value}: the model has no parameters of this part; it has {names}"
                )


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Rates(Factors):
    """Factors of the peak LR by part."""

    setting: ClassVar[str] = "rates"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Decay(Factors):
    """Factors of the weight decay by part, and whether the decay depends on the LR. Only matrices decay at all.

    Attributes:
        coupling: ``coupled`` shrinks a weight by the factor 1 - LR x weight_decay per step, as torch does;
            ``independent`` by the factor 1 - weight_decay x LR / peak LR, so that the decay does not depend on the peak
            LR. In a file, the word alone stands for a table with this setting.
    """

    setting: ClassVar[str] = "decay"
    coupling: Literal["coupled", "independent"] = "coupled"

    def of_group(self, weight_decay: float, share: float, learning_rate: float) -> float:
        """The ``weight_decay`` of torch, which torch multiplies by the LR of the step.

        Independent decay gives 0 for a group whose peak LR is 0.

        Args:
            weight_decay: the coefficient.
            share: the factor of the group.
            learning_rate: the peak LR of the group.
        """
        if self.coupling == "coupled":
            return weight_decay * share
        return weight_decay * share / learning_rate if learning_rate else 0.0


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

    def check(self, parameters: Sequence[TrainedParameter], learning_rate: float) -> None:
        """Refuse what ``build`` refuses. The first optimizer of a process costs 1.5 s, so a check may do without one.

        Raises:
            OptimizerError: as for ``build``.
        """
        self.build(parameters, learning_rate)


def by_rate(
    parameters: Sequence[TrainedParameter], rates: Rates, decay: Decay | None = None
) -> list[tuple[float, float, list[TrainedParameter]]]:
    """Triples (factor of the LR, factor of the weight decay, parameters).

    The factor of the decay is 0 for parameters that do not decay; groups that decay come first.

    Raises:
        OptimizerError: if a part that ``rates`` or ``decay`` changes has no parameters, or none that decays.
    """
    decay = decay or Decay()
    rates.check({part for parameter in parameters for part in parameter.parts})
    decay.check({part for parameter in parameters if parameter.decays for part in parameter.parts})
    groups: dict[tuple[float, float], list[TrainedParameter]] = {}
    for parameter in parameters:
        share = decay.of(parameter.parts) if parameter.decays else 0.0
        groups.setdefault((rates.of(parameter.parts), share), []).append(parameter)
    order = sorted(groups, key=lambda key: key[1] == 0)
    return [(rate, share, groups[rate, share]) for rate, share in order]


def check_range(config: object, name: str, low: float, high: float) -> None:
    """Refuse a setting outside the interval [low, high).

    Raises:
        ValueError: if the setting is outside the interval; the message names it.
    """
    value: Any = getattr(config, name)
    if not low <= value < high:
        above = "finite" if math.isinf(high) else f"below {high:g}"
        raise ValueError(f"{name} must be at least {low:g} and {above}, got {value}")
