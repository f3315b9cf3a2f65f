r"""Embedding scale: multiply the input of the first block, so that the shortcut dominates the branches.

.. math:: x_0 = \sqrt{D}\, E_{token}

If the embedding has entries of standard deviation :math:`\sqrt{2 / (5 D)}`, the residual stream starts with a standard
deviation of :math:`\sqrt{2/5}` at every width.
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
class EmbeddingScale(ModelEdit):
    """Multiply the output of the embedding by the square root of the model width."""

    source: ClassVar[Source] = Source(
        title="Spike No More: Stabilizing the Pre-training of Large Language Models",
        arxiv="2312.16903",
        place="Scaled Embed",
        equation="x_0 = sqrt(D) E",
        deviations=("where a family adds learned positions to the embedding, the sum is scaled",),
    )

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.EMBEDDING,)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return _Scale(math.sqrt(tap.width))


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    @override
    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.factor
