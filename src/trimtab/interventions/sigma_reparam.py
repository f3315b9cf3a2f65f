r"""sigmaReparam: divide each weight by its spectral norm and multiply by a learnable scalar.

.. math:: \hat W = \frac{\gamma}{\sigma(W)} W, \qquad \sigma(W) = v^\top W u

Once the power iteration has converged, :math:`\lVert \hat W \rVert_2 = |\gamma|`. The gradient is orthogonal to
:math:`W`, so only the scalar changes the spectral norm of a weight.

The vectors u and v are state. They advance by one power iteration for each optimizer step, right after it, outside of
any forward pass. Between steps the effective weight is a pure function, so a second forward pass, an evaluation, a
compiled graph and the recomputation of an activation checkpoint all see the same weight.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from typing_extensions import override

from trimtab.change import HeldRule
from trimtab.host import Part
from trimtab.intervention import Source, WeightRule


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SigmaReparam(WeightRule):
    """Reparametrise QKV, Proj, FC1 and FC2 by their spectral norm, with one power iteration for each optimizer step.

    In an eager model without an optimizer of torch, the iteration advances at the first training forward after a
    backward pass. A compiled model needs an optimizer that is a ``torch.optim.Optimizer``.

    Attributes:
        gamma: initial value of the learnable scalar. ``spectral_norm``, that of the initial weight, leaves the function
            unchanged, as in the authors' PyTorch code. ``one`` is the value in their paper and JAX code.

    Raises:
        ValueError: if gamma is unknown.
    """

    gamma: Literal["spectral_norm", "one"] = "spectral_norm"
    initial_fields: ClassVar[frozenset[str]] = frozenset({"gamma"})
    source: ClassVar[Source] = Source(
        title="Stabilizing Transformer Training by Preventing Attention Entropy Collapse",
        arxiv="2303.06296",
        place="method 1 of arXiv 2410.16682",
        equation="W_eff = (gamma / sigma(W)) W, sigma by power iteration",
        deviations=(
            "gamma starts at the spectral norm by default, so the function is unchanged; in the paper it starts at 1",
            "layer norms are kept; the rule covers QKV, Proj, FC1 and FC2; a fused QKV counts as one matrix",
            "one power iteration for each optimizer step; the authors' code makes one in each training forward",
        ),
    )

    def __post_init__(self) -> None:
        if self.gamma not in ("spectral_norm", "one"):
            raise ValueError(f"gamma must be spectral_norm or one, got {self.gamma!r}")

    @property
    @override
    def parts(self) -> Sequence[Part]:
        return (Part.Q, Part.K, Part.V, Part.PROJ, Part.FC1, Part.FC2)

    @override
    def rule(self, weight: Tensor) -> nn.Module:
        return _SpectralReparam(weight, unit=self.gamma == "one")


class _SpectralReparam(HeldRule):
    """The rule of one weight.

    Attributes:
        u, v: right and left singular vector, by power iteration.
    """

    def __init__(self, weight: Tensor, *, unit: bool) -> None:
        super().__init__()
        sigma, u, v = _leading(weight)
        # One entry and not none, because fully_shard takes no scalar.
        self.gamma = nn.Parameter(torch.ones_like(sigma) if unit else sigma)
        self.register_buffer("u", u)
        self.register_buffer("v", v)
        self._stepped = False  # an optimizer of torch steps the weight
        self._went_back = False
        self._number = _enlist(self)

    @torch.no_grad()
    def step(self, weight: Tensor) -> None:
        """Advance by one power iteration on a weight that was stepped; a sharded weight stays sharded."""
        self._stepped = True
        self._went_back = False
        u, v = cast(Tensor, self.u), cast(Tensor, self.v)
        new_u, new_v = _iterated(weight.detach().float(), u.float())
        u.copy_(new_u)
        v.copy_(new_v)

    @override
    def forward(self, weight: Tensor) -> Tensor:
        # Eager mode without an optimizer of torch. A compiled graph must not depend on Python state, so the mode is
        # asked for first.
        if not torch.compiler.is_compiling() and self.training and not self._stepped:
            self._follow(weight)
        # Sigma in float32, whatever the caller's autocast; the meta device has no autocast.
        with nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False):
            # Copies: the state may advance before they are used in backward.
            u, v = cast(Tensor, self.u).float().clone(), cast(Tensor, self.v).float().clone()
            sigma = torch.dot(v, weight.float() @ u)
            effective = (self.gamma.float() / sigma).to(weight.dtype) * weight
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
    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *rest: Any
    ) -> None:
        """Take the state; what a checkpoint lacks follows from its weight, which is loaded before."""
        gamma, u, v = (prefix + name for name in ("gamma", "u", "v"))
        if gamma in state_dict:
            state_dict[gamma] = state_dict[gamma].reshape(1)  # version 0.1.0 saved a scalar
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)
        weight = self.stored
        if weight is None or weight.is_meta or not self.weight_is_loaded:
            return
        with torch.no_grad():
            if not {gamma, u, v} & state_dict.keys():  # saved without the method; the function stays that of the weight
                for mine, found in zip((self.gamma, self.u, self.v), _leading(weight), strict=True):
                    cast(Tensor, mine).copy_(found)
            elif v in missing:  # version 0.1.0 did not save it
                cast(Tensor, self.v).copy_(F.normalize(weight.float() @ cast(Tensor, self.u).float(), dim=0))
                missing.remove(v)

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._number = _enlist(self)

    @override
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = super().__deepcopy__(memo)
        new._number = _enlist(new)
        return new


LIVE: weakref.WeakValueDictionary[int, _SpectralReparam] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def _enlist(rule: _SpectralReparam) -> int:
    number = next(_NUMBERS)
    LIVE[number] = rule
    return number


def _after_step(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    """Advance the rules of the weights that this optimizer stepped."""
    if not LIVE:
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for _, rule in sorted(LIVE.items()):  # every process has the same order, because sharded weights communicate
        weight = rule.stored
        if weight is not None and id(weight) in stepped:
            rule.step(weight)


register_optimizer_step_post_hook(_after_step)


def _leading(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest singular value (1,) of a weight with its right and left singular vector, in float32 on its device."""
    # Once, on the CPU in float64: accurate, and equal for every device of the model.
    whole = torch.zeros(weight.shape) if weight.is_meta else weight.detach()
    left, values, right = torch.linalg.svd(whole.double().cpu(), full_matrices=False)
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
