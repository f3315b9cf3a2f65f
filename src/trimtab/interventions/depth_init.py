r"""Depth init: Xavier's initial weights, with a gain on V, Proj, FC1 and FC2 that depends on the number of blocks.

.. math:: W \sim \mathcal N\!\left(0, \frac{2 g^2}{m + n}\right), \qquad
    g_{\mathrm{deep\,norm}} = (8 N)^{-1/4}, \quad g_{\mathrm{sub\,ln}} = \sqrt{\ln 2N}

for a matrix of :math:`m \times n` in a model of :math:`N` blocks; queries and keys have gain 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from trimtab.host import Part, PartView
from trimtab.intervention import InitRule, Source

GAINS = {
    "deep_norm": lambda num_layers: (8 * num_layers) ** -0.25,
    "sub_ln": lambda num_layers: math.sqrt(math.log(2 * num_layers)),
}
SCALED = frozenset({Part.V, Part.PROJ, Part.FC1, Part.FC2})
DRAWN = SCALED | {Part.Q, Part.K}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class DepthInit(InitRule):
    """Draw the initial matrices of every block by Xavier's rule; V, Proj, FC1 and FC2 get a gain that depends on depth.

    Attributes:
        law: the gain of V, Proj, FC1 and FC2 in a decoder of N blocks: ``deep_norm`` shrinks them by (8N)^(1/4),
            ``sub_ln`` enlarges them by sqrt(ln 2N).

    Raises:
        ValueError: if the law is unknown.
    """

    law: Literal["deep_norm", "sub_ln"] = "deep_norm"
    source: ClassVar[Source] = Source(
        title="DeepNet: Scaling Transformers to 1,000 Layers",
        arxiv="2203.00555",
        place="initialisation of a decoder; sub_ln: that of Magneto, arXiv 2210.06423",
        equation="W ~ Xavier normal; gain on V, Proj, FC1, FC2: (8N)^(-1/4), or sqrt(ln 2N)",
        deviations=(
            "embedding, position embeddings and head keep the initial values of the family",
            "matrices are drawn anew by Xavier's rule; the authors' code scales the initial values of its own modules",
        ),
    )

    def __post_init__(self) -> None:
        if self.law not in GAINS:
            raise ValueError(f"law must be one of {', '.join(GAINS)}, got {self.law!r}")

    @override
    def initial(self, view: PartView, num_layers: int) -> Tensor | None:
        if view.part not in DRAWN:
            return None
        weight = view.weight
        gain = GAINS[self.law](num_layers) if view.part in SCALED else 1.0
        std = gain * math.sqrt(2 / sum(weight.shape))
        return torch.randn(weight.shape, dtype=torch.float32, device=weight.device) * std
