r"""Inner norm: a second norm inside each branch, directly before Proj and directly before FC2.

.. math:: x \leftarrow x + \mathrm{LN}(\mathrm{attn}(\mathrm{LN}(x)))\,W_{Proj}, \qquad
    x \leftarrow x + \mathrm{LN}(\mathrm{act}(\mathrm{LN}(x) W_{FC1}))\,W_{FC2}

The inputs of Proj and FC2 have unit variance, so the scale of V has no effect. With a homogeneous activation the scale
of FC1 has no effect either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import Site, Tap
from trimtab.intervention import ModelEdit, Source


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class InnerNorm(ModelEdit):
    """Layer-normalise the inputs of Proj, over all heads together, and of FC2.

    Attributes:
        eps: added to the variance, in squared units of those inputs.

    Raises:
        ValueError: if eps is not positive and finite.
    """

    eps: float = 1e-5
    source: ClassVar[Source] = Source(
        title="Foundation Transformers (Magneto)",
        arxiv="2210.06423",
        place="Sub-LN",
        equation="x <- x + LN(attn(LN(x))) W_Proj; x <- x + LN(act(LN(x) W_FC1)) W_FC2",
        deviations=("in the MLP the norm follows the activation, or the product in a gated MLP",),
    )

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive and finite, got {self.eps}")

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.HEAD_OUT, Site.MLP_HIDDEN)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        if tap.num_heads:
            return _AllHeads(nn.LayerNorm(tap.num_heads * tap.width, eps=self.eps))
        return nn.LayerNorm(tap.width, eps=self.eps)


class _AllHeads(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    @override
    def forward(self, x_BHTK: Tensor) -> Tensor:
        heads = x_BHTK.shape[1]
        return self.norm(x_BHTK.transpose(1, 2).flatten(2)).unflatten(-1, (heads, -1)).transpose(1, 2)
