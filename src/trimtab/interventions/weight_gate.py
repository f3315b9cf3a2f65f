r"""Weight gate (WeSaR): all matrices are stored at a common scale, each behind a learnable scalar that sets its scale.

.. math:: W_{eff} = \alpha W, \qquad W_{ij} \sim \mathcal N(0, \hat\sigma^2), \quad \alpha_0 = \sigma / \hat\sigma

Adam changes every entry by about the LR. At a common scale :math:`\lVert\Delta W\rVert / \lVert W\rVert` is therefore
the same for every matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.change import HeldRule
from trimtab.host import Part
from trimtab.intervention import Source, WeightRule


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class WeightGate(WeightRule):
    """Store QKV, Proj, FC1 and FC2 at a common standard deviation, each behind a learnable scalar gate.

    Attributes:
        std: standard deviation of every stored matrix ("sigma hat").

    Raises:
        ValueError: if std is not positive and finite.
    """

    std: float = math.sqrt(4e-5)
    initial_fields: ClassVar[frozenset[str]] = frozenset({"std"})
    source: ClassVar[Source] = Source(
        title="Initialization of Large Language Models via Reparameterization to Mitigate Loss Spikes",
        arxiv="2410.05052",
        place="WeSaR",
        equation="W_eff = alpha W, W ~ N(0, sigma^2), alpha = target std / sigma at first",
        deviations=(
            "sources differ on sigma: 4e-5 is taken as its square, so sigma is 6.3e-3",
            "the target is the initial standard deviation of the family, so the function is unchanged",
            "the rule covers QKV, Proj, FC1 and FC2; a fused QKV counts as one matrix; embedding and head stay plain",
        ),
    )

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise ValueError(f"std must be positive and finite, got {self.std}")

    @property
    @override
    def parts(self) -> Sequence[Part]:
        return (Part.Q, Part.K, Part.V, Part.PROJ, Part.FC1, Part.FC2)

    @override
    def rule(self, weight: Tensor) -> nn.Module:
        return _Gated(weight, self.std)


class _Gated(HeldRule):
    def __init__(self, weight: Tensor, std: float) -> None:
        super().__init__()
        alpha = (weight.detach().float().std(correction=0) / std).reshape(1)  # fully_shard takes no scalar
        self.alpha = nn.Parameter(torch.where(alpha == 0, 1.0, alpha))  # a matrix of zeros stays zero

    @override
    def forward(self, weight: Tensor) -> Tensor:
        return self.alpha.to(weight.dtype) * weight

    @override
    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Any], prefix: str, *rest: Any
    ) -> None:
        """Take alpha. A weight that was saved without the method is divided by alpha, so the function stays its own."""
        key = prefix + "alpha"
        if key in state_dict:
            state_dict[key] = state_dict[key].reshape(1)  # version 0.1.0 saved a scalar
        super()._load_from_state_dict(state_dict, prefix, *rest)
        stored = self.stored
        if stored is not None and self.weight_is_loaded and key not in state_dict:
            with torch.no_grad():
                stored.div_(self.alpha.to(stored.dtype))

    def right_inverse(self, effective: Tensor) -> Tensor:
        """The stored weight for a given effective weight."""
        return effective / self.alpha.detach().to(effective.dtype)
