"""Several optimizers as one ``torch.optim.Optimizer``, with common groups, state, hooks and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import override


class CompositeOptimizer(torch.optim.Optimizer):
    """Optimizers over disjoint sets of parameters that step together.

    The composite and its parts share the same group dictionaries, in the order of the parts, and the same ``state``.
    Therefore a change of a group's LR applies to the part, and ``state_dict`` saves all parts.

    Args:
        parts: the optimizers, in the order in which they step.

    Attributes:
        parts: the optimizers, for code that reads the state of a part.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            self.state.update(part.state)
        self._share()

    @override
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if hasattr(self, "parts"):
            raise TypeError("add the group to one of the parts before you create the CompositeOptimizer")
        super().add_param_group(param_group)

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "parts": self.parts,
        }  # torch's __getstate__ returns only defaults, state and param_groups

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "parts"):
            self._share()

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups = self.param_groups[first:last]
            part.state = self.state
            first = last
