"""Scaled Embed: small initial matrices and a scaled embedding, so that the shortcut dominates the branches."""

from __future__ import annotations

from dataclasses import replace

from trimtab.interventions.embedding_scale import EmbeddingScale
from trimtab.interventions.small_init import SmallInit
from trimtab.method import Method

scaled_embed = Method(
    "scaled_embed",
    (SmallInit(), EmbeddingScale()),
    replace(
        EmbeddingScale.source,
        equation="x_0 = sqrt(D) E; std = sqrt(2 / (5 D)), Proj and FC2 times sqrt(1 / (2N))",
        deviations=(*EmbeddingScale.source.deviations, *SmallInit.source.deviations),
    ),
)
