r"""Logit cap: bound every output logit smoothly.

.. math:: \ell' = c \tanh(\ell / c)

Every logit lies in :math:`[-c, c]`, for any weights; then log Z lies within :math:`c` of :math:`\log V`.
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
class LogitCap(ModelEdit):
    """Bound every output logit by a smooth cap before the loss.

    Attributes:
        cap: largest magnitude a logit can reach ("c"): 30 in Gemma 2, 15 to 20 in nanochat; identity as cap -> inf.

    Raises:
        ValueError: if cap is not positive and finite.
    """

    cap: float = 30.0
    source: ClassVar[Source] = Source(
        title="Gemma 2: Improving Open Language Models at a Practical Size",
        arxiv="2408.00118",
        place="section 2, logit soft-capping of the final layer",
        equation="l' = c tanh(l / c), c = 30",
        deviations=("computed in the dtype of the logits; nanochat computes it in fp32",),
    )

    def __post_init__(self) -> None:
        if not 0 < self.cap < math.inf:
            raise ValueError(f"cap must be positive and finite, got {self.cap}")

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.LOGITS,)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return _Cap(self.cap)


class _Cap(nn.Module):
    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    @override
    def forward(self, logits_BTV: Tensor) -> Tensor:
        return (logits_BTV / self.cap).tanh() * self.cap
