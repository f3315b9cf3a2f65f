"""Effective weights that are computed once for all micro-batches of a step, with their gradients passed on once."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trimtab.sharding import is_sharded


@runtime_checkable
class Defers(Protocol):
    """A rule of a weight that can keep its effective weight, and the gradient of it, over several micro-batches."""

    def defer(self) -> None:
        """Compute the effective weight now, for all training passes until ``flush``."""
        ...

    def flush(self) -> None:
        """Pass the collected gradient on to the stored weight, and compute the effective weight at every pass again."""
        ...


class Deferred:
    """An effective weight, and in its place a leaf that collects the gradients of several passes.

    Attributes:
        leaf: the tensor to be used in these passes.
    """

    def __init__(self, effective: Tensor) -> None:
        self._effective = effective
        self.leaf = effective.detach().requires_grad_()

    def backward(self) -> None:
        """Pass the collected gradient on."""
        if self.leaf.grad is not None:
            torch.autograd.backward(self._effective, self.leaf.grad)


def _is_distributed(model: nn.Module) -> bool:
    wrapped = any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules())
    return wrapped or any(is_sharded(parameter) for parameter in model.parameters())


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())


@contextmanager
def accumulating(model: nn.Module) -> Generator[None]:
    """A block with all micro-batches of one optimizer step, forward and backward.

    Rules whose effective weight is expensive (``pc_layer``) compute it once in the block, and their gradients are
    complete at its end. Gradients are the same. A model that is distributed over processes is left as it is, because
    they exchange the gradients of a weight during backward, and so is a compiled one, whose graph contains the weight.
    """
    rules = [module for module in model.modules() if isinstance(module, Defers)]
    if rules and (_is_distributed(model) or _is_compiled(model)):
        rules = []
    for rule in rules:
        rule.defer()
    try:
        yield
    finally:
        for rule in rules:
            rule.flush()
