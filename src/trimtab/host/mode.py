"""Eval mode within a block of code."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Put a module into eval mode within the block, and restore the mode of every submodule after it.

    ``module.train(was_training)`` would not do: it also sets the submodules that the user had put into eval mode.
    """
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode
