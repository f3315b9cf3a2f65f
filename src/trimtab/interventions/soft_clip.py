r"""Soft clip (clipped softmax): stretch the probabilities and clip them, so that exact 0 and 1 are reachable.

.. math:: A = \mathrm{clip}((\zeta - \gamma)\,\mathrm{softmax}(S + M) + \gamma,\ 0,\ 1)

A head can attend to no key, or to one key only, at finite scores. Clipped entries get no gradient. With a fixed gamma
the average weight of a long context, 1/T, lies below the clip, so rows of zeros are frequent there from the start. With
gamma = -alpha/T the clip falls with the context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import Site, Tap
from trimtab.intervention import ModelEdit, Source


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SoftClip(ModelEdit):
    """Stretch attention probabilities beyond [0, 1] and clip them back.

    Attributes:
        high: stretched value of probability 1 ("zeta"), at least 1.
        low: stretched value of probability 0 ("gamma"), at most 0; masked keys stay exactly 0.
        alpha: if positive, gamma is -alpha/T for T keys in place of ``low``, as in the authors' scripts, which set 12.

    Raises:
        ValueError: if high is below 1, low is above 0, alpha is negative, or one is not finite.
    """

    high: float = 1.03
    low: float = -0.03
    alpha: float = field(default=0.0, metadata={"neutral": 0.0})
    source: ClassVar[Source] = Source(
        title="Quantizable Transformers: Removing Outliers by Helping Attention Heads Do Nothing",
        arxiv="2306.12929",
        place="method 4 of arXiv 2410.16682",
        equation="A = clip((zeta - gamma) softmax(S + mask) + gamma, 0, 1), zeta = 1.03, gamma = -0.03",
        deviations=(
            "rows are not renormalised, because the formula has no such step",
            "gamma is fixed, as in 2410.16682; the authors' scripts for language models set gamma = -alpha/T (alpha)",
        ),
    )

    def __post_init__(self) -> None:
        if not 1 <= self.high < math.inf:
            raise ValueError(f"high must be at least 1 and finite, got {self.high}")
        if not -math.inf < self.low <= 0:
            raise ValueError(f"low must be at most 0 and finite, got {self.low}")
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must not be negative and must be finite, got {self.alpha}")

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.WEIGHTS,)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return _Clip(self.high, self.low, self.alpha)


class _Clip(nn.Module):
    def __init__(self, high: float, low: float, alpha: float) -> None:
        super().__init__()
        self.high = high
        self.low = low
        self.alpha = alpha

    @override
    def forward(self, w_BHTT: Tensor) -> Tensor:
        low = -self.alpha / w_BHTT.shape[-1] if self.alpha else self.low
        return (w_BHTT * (self.high - low) + low).clamp(0, 1)
