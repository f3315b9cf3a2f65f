"""The leading singular vectors of a weight, kept by power iteration: the state of rules that scale by a spectral norm.

The vectors advance once for each optimizer step, right after it, outside of any forward pass. Between steps the
effective weight is a pure function, so a second forward pass, an evaluation, a compiled graph and the recomputation of
an activation checkpoint all see the same weight. Without an optimizer of torch, in eager mode, they advance at the
first training forward after a backward pass.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from typing_extensions import override

from trimtab.change import HeldRule


class SpectralRule(HeldRule):
    """A rule of a weight (out, in) that needs its spectral norm.

    Call ``vectors`` in the forward pass, and ``followed`` on the effective weight that it returns.

    Args:
        weight: the weight when the rule is installed; its singular vectors are exact then.
        iterations: power iterations for each optimizer step.

    Attributes:
        u, v: right and left singular vector, float32.
        is_due: whether the vectors are to advance at the end of the step of an optimizer.
    """

    is_due: bool = False

    def __init__(self, weight: Tensor, iterations: int = 1) -> None:
        super().__init__()
        self.iterations = iterations
        _, u, v = leading(weight)
        self.register_buffer("u", u)
        self.register_buffer("v", v)
        self._stepped = False  # an optimizer of torch steps the weight
        self._went_back = False
        self._number = _enlist(self)

    @torch.no_grad()
    def step(self, weight: Tensor) -> None:
        """Advance on a weight that was stepped; a sharded weight stays sharded."""
        self._stepped = True
        self._went_back = False
        u, v = cast(Tensor, self.u), cast(Tensor, self.v)
        new_u, new_v = u.float(), v.float()
        wide = weight.detach().float()
        for _ in range(self.iterations):
            new_u, new_v = _iterated(wide, new_u)
        u.copy_(new_u)
        v.copy_(new_v)

    def is_stepped_outside(self) -> None:
        """The caller calls ``step`` after each optimizer step, so that no forward pass advances the state."""
        self._stepped = True

    def vectors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """U and v for a forward pass. They are copies: the state may advance before they are used in backward."""
        # A compiled graph must not depend on Python state, so the mode is asked for first.
        if not torch.compiler.is_compiling() and self.training and not self._stepped:
            self._follow(weight)
        return cast(Tensor, self.u).float().clone(), cast(Tensor, self.v).float().clone()

    def followed(self, effective: Tensor) -> Tensor:
        """The same tensor, whose backward pass is noticed where no optimizer of torch tells of its steps."""
        if not torch.compiler.is_compiling() and self.training and not self._stepped and effective.requires_grad:
            effective.register_hook(self._note)
        return effective

    def _follow(self, weight: Tensor) -> None:
        """Advance at the first forward pass after a backward pass, but not when a checkpoint repeats a forward pass."""
        if self._went_back and torch._C._current_graph_task_id() == -1:
            self.step(weight)
            self._stepped = False

    def _note(self, _: Tensor) -> None:
        self._went_back = not self._stepped

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._number = _enlist(self)

    @override
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = super().__deepcopy__(memo)
        new._number = _enlist(new)
        return new


LIVE: weakref.WeakValueDictionary[int, SpectralRule] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def _enlist(rule: SpectralRule) -> int:
    number = next(_NUMBERS)
    LIVE[number] = rule
    return number


def _before_step(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    for rule, _ in _stepped_by(optimizer):
        rule.is_due = True


def _after_step(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    """Advance the rules of the weights that this optimizer stepped.

    An optimizer that steps by others, such as Muon with AdamW or a wrapper of the user, calls this after they did:
    what has advanced since the step began stays.
    """
    for rule, weight in _stepped_by(optimizer):
        if rule.is_due:
            rule.is_due = False
            rule.step(weight)


def _stepped_by(optimizer: torch.optim.Optimizer) -> list[tuple[SpectralRule, Tensor]]:
    if not LIVE:
        return []
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    # Every process has the same order, because sharded weights communicate.
    stored = [(rule, rule.stored) for _, rule in sorted(LIVE.items())]
    return [(rule, weight) for rule, weight in stored if weight is not None and id(weight) in stepped]


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)


def leading(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest singular value (1,) of a weight with its right and left singular vector, in float32 on its device."""
    whole = weight.detach().double()
    if not whole.is_meta:  # once, on the CPU in float64: accurate, and equal for every device of the model
        whole = whole.cpu()
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    found = (values[:1], right[0], left[:, 0].contiguous())
    sigma, u, v = (x.to(weight.device, torch.float32) for x in found)
    return sigma, u, v


def _iterated(matrix: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """One power iteration; of a sharded matrix, the ranks exchange vectors only."""
    if hasattr(matrix, "device_mesh"):
        return _iterated_sharded(matrix, u)
    v = F.normalize(matrix @ u, dim=0)
    return F.normalize(matrix.T @ v, dim=0), v


def _iterated_sharded(matrix: Any, u: Tensor) -> tuple[Tensor, Tensor]:
    from torch.distributed.tensor import DTensor, Replicate  # a slow import

    def everywhere(x: Tensor) -> Any:
        return DTensor.from_local(x, matrix.device_mesh, [Replicate()] * matrix.device_mesh.ndim, run_check=False)

    v = F.normalize((matrix @ everywhere(u)).full_tensor(), dim=0)
    return F.normalize((matrix.T @ everywhere(v)).full_tensor(), dim=0), v
