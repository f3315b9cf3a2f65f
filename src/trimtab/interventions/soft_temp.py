r"""Soft temperature: scale the scores down, so that the softmax is flatter.

.. math:: A = \mathrm{softmax}(\beta S + M)

For the same scores and :math:`\beta < 1`, the entropy of every attention row is at least as large as without scaling.
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
class SoftTemp(ModelEdit):
    """Multiply every attention score by a fixed factor before the softmax.

    Attributes:
        factor: multiplier of the scores ("beta" in the paper), dimensionless; 1 changes nothing, and attention becomes
            uniform as factor -> 0.

    Raises:
        ValueError: if factor is not positive and finite.
    """

    factor: float = 0.5
    source: ClassVar[Source] = Source(
        title="Methods of improving LLM training stability",
        arxiv="2410.16682",
        place="method 2",
        equation="A = softmax(beta S + mask), beta = 0.5",
        deviations=(
            "the direction is uncertain in the paper; here scores are multiplied by beta, which makes them smaller",
        ),
    )

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor must be positive and finite, got {self.factor}")

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.SCORES,)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return _Temperature(self.factor)


class _Temperature(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    @override
    def forward(self, s_BHTT: Tensor) -> Tensor:
        return s_BHTT * self.factor
