r"""QK-norm: normalise queries and keys per head, so that no score can grow without bound.

.. math:: S = \mathrm{LN}_q(Q)\,\mathrm{LN}_k(K)^\top / \sqrt{K}

With unit gains :math:`|s_{ij}| \le \sqrt{K}`, and the scale of the query and key weights has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import Site, Tap
from trimtab.intervention import ModelEdit, Source

NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class QKNorm(ModelEdit):
    """Normalise every query and key.

    Attributes:
        norm: type of norm; OLMo 2 and Qwen 3 use the RMS norm, without bias.
        across: ``head`` normalises each head over its K channels, with a gain shared by the heads, as in Qwen 3;
            ``width`` normalises all heads together, as in OLMo 2.
        eps: added to the variance, in squared units of the queries.

    Raises:
        ValueError: if norm or across is unknown, or eps is not positive and finite.
    """

    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    across: Literal["head", "width"] = "head"
    eps: float = 1e-6
    source: ClassVar[Source] = Source(
        title="Methods of improving LLM training stability",
        arxiv="2410.16682",
        place="method 6; QK-LN of arXiv 2309.14322",
        equation="S = LN(Q) LN(K)^T / sqrt(K)",
        deviations=(
            "the norm is per head, over its channels; the heads share one gain and bias for q, and one for k",
            "the norm precedes the rotary embedding",
        ),
    )

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        if self.across not in ("head", "width"):
            raise ValueError(f"across must be head or width, got {self.across!r}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive and finite, got {self.eps}")

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.QUERY, Site.KEY)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        kind = NORMS[self.norm]
        if self.across == "head":
            return kind(tap.width, eps=self.eps)
        return _WholeWidth(kind(tap.num_heads * tap.width, eps=self.eps))


class _WholeWidth(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    @override
    def forward(self, x_BHTK: Tensor) -> Tensor:
        heads = x_BHTK.shape[1]
        return self.norm(x_BHTK.transpose(1, 2).flatten(2)).unflatten(-1, (heads, -1)).transpose(1, 2)
