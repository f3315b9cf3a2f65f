r"""QK-norm: normalise queries and keys per head, so that no score can grow without bound.

.. math:: S = \mathrm{LN}_q(Q)\,\mathrm{LN}_k(K)^\top / \sqrt{K}

With unit gains :math:`|s_{ij}| \le \sqrt{K}`, and the scale of the query and key weights has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn
from typing_extensions import override

from trimtab.host import Site, Tap
from trimtab.intervention import ModelEdit, Source


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class QKNorm(ModelEdit):
    """Layer-normalise every query and key head over its K channels.

    Attributes:
        eps: added to the variance, in squared units of the queries.

    Raises:
        ValueError: if eps is not positive and finite.
    """

    eps: float = 1e-6
    source: ClassVar[Source] = Source(
        title="Methods of improving LLM training stability",
        arxiv="2410.16682",
        place="method 6; QK-LN of arXiv 2309.14322",
        equation="S = LN(Q) LN(K)^T / sqrt(K)",
        deviations=(
            "per head over its channels, one gain and bias for q and one for k, shared by the heads",
            "before rotary, not after",
        ),
    )

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive and finite, got {self.eps}")

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.QUERY, Site.KEY)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return nn.LayerNorm(tap.width, eps=self.eps)
