r"""Branch norm: normalise the output of Proj and of FC2 before each residual add.

.. math:: x \leftarrow x + \mathrm{LN}(f(\mathrm{LN}(x)))

With unit gains each branch adds a vector of length :math:`\sqrt{D}` per token, for any weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import nn
from typing_extensions import override

from trimtab.host import Site, Tap
from trimtab.intervention import ModelEdit, Source

NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class BranchNorm(ModelEdit):
    """Normalise each branch output over the model width.

    Attributes:
        norm: type of norm; OLMo 2 uses the RMS norm, without bias.
        eps: added to the variance, in squared units of the branch output.

    Raises:
        ValueError: if norm is unknown, or eps is not positive and finite.
    """

    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    eps: float = 1e-6
    source: ClassVar[Source] = Source(
        title="Methods of improving LLM training stability",
        arxiv="2410.16682",
        place="the norms after Proj and FC2 of method 9",
        equation="x <- x + LN(Proj(...)); x <- x + LN(FC2(...))",
        deviations=("the gain starts at 1 and the bias at 0; the paper does not state either",),
    )

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive and finite, got {self.eps}")

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.ATTN_OUT, Site.MLP_OUT)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return NORMS[self.norm](tap.width, eps=self.eps)
