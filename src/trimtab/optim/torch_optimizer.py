"""Any optimizer of ``torch.optim``, by the name of its class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from typing_extensions import override

from trimtab.config import Settings
from trimtab.optim.contract import Decay, OptimizerConfig, OptimizerError, TrainedParameter, by_rate, check_range

OF_TRIMTAB = ("params", "lr", "weight_decay")
WITH_CLOSURE = ("LBFGS",)
MATRICES_ONLY = ("Muon",)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TorchOptimizer(OptimizerConfig):
    """An optimizer of ``torch.optim``, with weight decay on matrices of the model family only.

    Attributes:
        name: the class, such as ``"NAdam"``, ``"SGD"`` or ``"Adafactor"``.
        settings: its further arguments, such as ``{ momentum = 0.9 }``; a list stands for a tuple.
        weight_decay: coefficient of the decay of matrices, if the class has one. Whether it is decoupled from the
            gradient is a matter of the class.
        decay: factors of the decay by part, and its coupling, as in ``adamw``.

    Raises:
        ValueError: if there is no such class, it needs a closure or takes matrices only, or it has no such argument.
    """

    name: str = "SGD"
    settings: Settings = field(default_factory=Settings)
    weight_decay: float = 0.0
    decay: Decay = field(default_factory=Decay)

    def __post_init__(self) -> None:
        check_range(self, "weight_decay", 0, float("inf"))
        known = _classes()
        if self.name in MATRICES_ONLY:
            raise ValueError(f"torch.optim.{self.name} takes matrices only; use optimizer = {{ muon = {{}} }}")
        if self.name in WITH_CLOSURE:
            raise ValueError(f"torch.optim.{self.name} needs a closure, which a training step does not have")
        if self.name not in known:
            raise ValueError(f"torch.optim has no optimizer {self.name!r}; it has {', '.join(sorted(known))}")
        takes = [name for name in inspect.signature(known[self.name]).parameters if name not in OF_TRIMTAB]
        for name in self.settings:
            if name not in takes:
                raise ValueError(f"torch.optim.{self.name} has no setting {name!r}; it takes {', '.join(takes)}")
        if self.weight_decay and "weight_decay" not in inspect.signature(known[self.name]).parameters:
            raise ValueError(f"torch.optim.{self.name} has no weight decay; set weight_decay = 0")

    @classmethod
    @override
    def slug(cls) -> str:
        return "torch"

    @override
    def build(self, parameters: Sequence[TrainedParameter], learning_rate: float) -> torch.optim.Optimizer:
        kind = _classes()[self.name]
        has_decay = "weight_decay" in inspect.signature(kind).parameters
        groups = [
            {"params": [member.parameter for member in members], "lr": learning_rate * rate}
            | (
                {"weight_decay": self.decay.of_group(self.weight_decay, share, learning_rate * rate)}
                if has_decay
                else {}
            )
            for rate, share, members in by_rate(parameters, self.rates, self.decay)
        ]
        settings = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in self.settings.items()}
        try:
            return kind(groups, lr=learning_rate, **settings)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OptimizerError(f"optimizer.torch: torch.optim.{self.name}: {error}") from error


def _classes() -> Mapping[str, Any]:
    return {
        name: kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
