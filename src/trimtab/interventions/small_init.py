r"""Small init: draw small initial matrices, scaled down with depth in Proj and FC2, so that the shortcut dominates.

.. math:: \sigma = \sqrt{\tfrac{2}{5 D}}, \qquad \sigma_{Proj} = \sigma_{FC2} = \sigma \sqrt{\tfrac{1}{2 N}}

for the model width :math:`D` and :math:`N` blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from trimtab.host import Part, PartView
from trimtab.intervention import InitRule, Source

DRAWN = frozenset({Part.EMBEDDING, Part.Q, Part.K, Part.V, Part.PROJ, Part.FC1, Part.FC2, Part.HEAD})
SHRUNK = frozenset({Part.PROJ, Part.FC2})
MODEL_INPUT = frozenset({Part.EMBEDDING, Part.Q, Part.K, Part.V, Part.FC1, Part.HEAD})


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SmallInit(InitRule):
    """Draw every matrix from a normal distribution of small standard deviation, which depends on width and depth."""

    source: ClassVar[Source] = Source(
        title="Spike No More: Stabilizing the Pre-training of Large Language Models",
        arxiv="2312.16903",
        place="initialisation of all methods compared",
        equation="std = sqrt(2 / (5 D)); Proj and FC2 times sqrt(1 / (2 N))",
        deviations=(
            "embedding and head are drawn like the other matrices",
            "position embeddings keep the initial values of the family",
        ),
    )

    @override
    def initial(self, view: PartView, num_layers: int) -> Tensor | None:
        if view.part not in DRAWN:
            return None
        weight = view.weight
        width = weight.shape[1] if view.part in MODEL_INPUT else weight.shape[0]
        std = math.sqrt(2 / (5 * width)) * (math.sqrt(1 / (2 * num_layers)) if view.part in SHRUNK else 1.0)
        return torch.randn(weight.shape, dtype=torch.float32, device=weight.device) * std
