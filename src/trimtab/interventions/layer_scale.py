r"""LayerScale: a learnable gain per channel on each branch, with a small initial value.

.. math:: x \leftarrow x + \mathrm{diag}(\lambda)\, f(\mathrm{LN}(x))

Every block starts close to the identity, for any weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import Site, Tap
from trimtab.intervention import ModelEdit, Source


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class LayerScale(ModelEdit):
    """Multiply each branch output by a learnable gain per channel, just before the residual add.

    Attributes:
        initial: initial value of every gain ("lambda"), dimensionless; 1 gives the plain block, 0 the identity.

    Raises:
        ValueError: if initial is negative or not finite.
    """

    initial: float = 1e-5
    initial_fields: ClassVar[frozenset[str]] = frozenset({"initial"})
    source: ClassVar[Source] = Source(
        title="Going deeper with Image Transformers",
        arxiv="2103.17239",
        place="method 5 of arXiv 2410.16682",
        equation="x <- x + diag(lambda) f(LN(x)), lambda = 1e-5 at first",
        deviations=("2410.16682 does not report the initial value; 1e-5 is that of CaiT for 24 layers",),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.initial < math.inf:
            raise ValueError(f"initial must be finite and not negative, got {self.initial}")

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.ATTN_OUT, Site.MLP_OUT)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return _Scale(tap.width, self.initial)


class _Scale(nn.Module):
    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), initial))

    @override
    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.gain
