"""DeepNorm: post-norms in place of pre-norms, a weighted shortcut, and initial weights scaled down with depth."""

from __future__ import annotations

from dataclasses import replace

from trimtab.interventions.depth_init import DepthInit
from trimtab.interventions.post_norm import PostNorm
from trimtab.interventions.pre_norm_removal import PreNormRemoval
from trimtab.method import Method

deep_norm = Method(
    "deep_norm",
    (PreNormRemoval(norms=("attn_norm", "mlp_norm", "final_norm")), DepthInit(law="deep_norm"), PostNorm()),
    replace(
        PostNorm.source,
        equation=f"{PostNorm.source.equation}; Xavier init, V, Proj, FC1, FC2 over (8N)^(1/4)",
        deviations=(
            *PostNorm.source.deviations,
            *DepthInit.source.deviations,
            "there is no norm before the head, because the last add is followed by a norm",
        ),
    ),
)
