r"""V-norm: normalise values per head, so that the output of each head is bounded.

.. math:: O = A\,\mathrm{LN}_v(V)

With a unit gain the length of a head output is at most :math:`\sqrt{K}` at every token.
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
class VNorm(ModelEdit):
    """Layer-normalise every value head over its K channels.

    Attributes:
        eps: added to the variance, in squared units of the values.

    Raises:
        ValueError: if eps is not positive and finite.
    """

    eps: float = 1e-6
    source: ClassVar[Source] = Source(
        title="Methods of improving LLM training stability",
        arxiv="2410.16682",
        place="the third norm of method 8",
        equation="O = A LN(V)",
        deviations=("the norm is per head, over its channels; the heads share one gain and bias",),
    )

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive and finite, got {self.eps}")

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.VALUE,)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return nn.LayerNorm(tap.width, eps=self.eps)
