r"""Soft cap: bound every attention score smoothly.

.. math:: S' = c \tanh(S / c)

Every score lies in :math:`[-c, c]`, for any weights.
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
class SoftCap(ModelEdit):
    """Bound every attention score by a smooth cap before the mask and the softmax.

    Attributes:
        cap: largest magnitude a score can reach, in score units ("c" in the paper); identity as cap -> inf.

    Raises:
        ValueError: if cap is not positive and finite.
    """

    cap: float = 50.0
    source: ClassVar[Source] = Source(
        title="Methods of improving LLM training stability",
        arxiv="2410.16682",
        place="method 3",
        equation="S' = c tanh(S / c), A = softmax(S' + mask), c = 50",
    )

    def __post_init__(self) -> None:
        if not 0 < self.cap < math.inf:
            raise ValueError(f"cap must be positive and finite, got {self.cap}")

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.SCORES,)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return _Cap(self.cap)


class _Cap(nn.Module):
    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    @override
    def forward(self, s_BHTT: Tensor) -> Tensor:
        return (s_BHTT / self.cap).tanh() * self.cap
