r"""Post-norm with a weighted shortcut: normalise the residual stream after every add.

.. math:: x \leftarrow \mathrm{LN}(\alpha x + f(x)), \qquad \alpha = (2 N)^{1/4}

It is computed as :math:`\mathrm{LN}(x + f(x) / \alpha)` with :math:`\varepsilon / \alpha^2`. The two are equal, and
this form keeps the residual add of the family. The stream has unit variance after every branch.
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
class PostNorm(ModelEdit):
    """Weigh the shortcut by ``(2 num_layers) ** power`` and layer-normalise every sum.

    Attributes:
        power: exponent of twice the number of blocks; the result is "alpha". 0 gives the plain post-norm.
        eps: added to the variance, in squared units of the weighted sum.

    Raises:
        ValueError: if power is negative or not finite, or eps is not positive and finite.
    """

    power: float = 0.25
    eps: float = 1e-5
    source: ClassVar[Source] = Source(
        title="DeepNet: Scaling Transformers to 1,000 Layers",
        arxiv="2203.00555",
        place="DeepNorm of a decoder",
        equation="x <- LN(alpha x + f(x)), alpha = (2N)^(1/4)",
        deviations=("alpha follows the paper and its code; GLM-130B uses (2N)^(1/2)",),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.power < math.inf:
            raise ValueError(f"power must be finite and not negative, got {self.power}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive and finite, got {self.eps}")

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.ATTN_OUT, Site.MLP_OUT, Site.RESIDUAL)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        alpha = (2 * tap.num_layers) ** self.power
        if tap.site is Site.RESIDUAL:
            return nn.LayerNorm(tap.width, eps=self.eps / alpha**2)
        return _Divide(alpha)


class _Divide(nn.Module):
    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    @override
    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD / self.alpha
