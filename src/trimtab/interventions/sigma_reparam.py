r"""sigmaReparam: divide each weight by its spectral norm and multiply by a learnable scalar.

.. math:: \hat W = \frac{\gamma}{\sigma(W)} W, \qquad \sigma(W) = v^\top W u

Once the power iteration has converged, :math:`\lVert \hat W \rVert_2 = |\gamma|`. The gradient is orthogonal to
:math:`W`, so only the scalar changes the spectral norm of a weight.

The vectors u and v are state, which advances by one power iteration for each optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import Part
from trimtab.intervention import Source, WeightRule
from trimtab.spectral import SpectralRule, leading


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


class _SpectralReparam(SpectralRule):
    """The rule of one weight."""

    def __init__(self, weight: Tensor, *, unit: bool) -> None:
        super().__init__(weight)
        sigma, _, _ = leading(weight)
        # One entry and not none, because fully_shard takes no scalar.
        self.gamma = nn.Parameter(torch.ones_like(sigma) if unit else sigma)

    @override
    def forward(self, weight: Tensor) -> Tensor:
        u, v = self.vectors(weight)
        # Sigma in float32, whatever the caller's autocast; the meta device has no autocast.
        with nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False):
            sigma = torch.dot(v, weight.float() @ u)
            effective = (self.gamma.float() / sigma).to(weight.dtype) * weight
        return self.followed(effective)

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
                for mine, found in zip((self.gamma, self.u, self.v), leading(weight), strict=True):
                    cast(Tensor, mine).copy_(found)
            elif v in missing:  # version 0.1.0 did not save it
                cast(Tensor, self.v).copy_(F.normalize(weight.float() @ cast(Tensor, self.u).float(), dim=0))
                missing.remove(v)
