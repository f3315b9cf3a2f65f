"""Several optimizers in one training: the step of training that the steps of all of them make up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch


class Round:
    """The steps of the optimizers since the last step of training ended.

    A step of training ends when each optimizer has made its step, in any order. An optimizer that another one overtakes
    does not step every time: from then on a step of training ends without it, and its own steps are read where they
    come before that end.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._names = {id(optimizer): type(optimizer).__name__ for optimizer in optimizers}
        self._expected = set(self._names)
        self._stepped: set[int] = set()

    @property
    def is_open(self) -> bool:
        """Whether an optimizer has stepped since the last end."""
        return bool(self._stepped)

    def is_overtaking(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this optimizer is about to step twice while another one has not stepped."""
        return id(optimizer) in self._stepped

    def go_on_without_the_others(self) -> None:
        """End the step of training, and expect only those optimizers that made it."""
        late = ", ".join(self._names[number] for number in self._names if number in self._expected - self._stepped)
        warnings.warn(f"trimtab: {late} does not step at every step; its updates may not be read", stacklevel=3)
        self._expected = self._stepped
        self._stepped = set()

    def is_ended_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the step of training is complete now that this optimizer has stepped."""
        self._stepped.add(id(optimizer))
        if not self._expected <= self._stepped:
            return False
        self._stepped = set()
        return True
