"""Method 8: layer norm on Q, K and V, and no norm before QKV."""

from __future__ import annotations

from trimtab.intervention import Source
from trimtab.interventions.pre_norm_removal import PreNormRemoval
from trimtab.interventions.qk_norm import QKNorm
from trimtab.interventions.v_norm import VNorm
from trimtab.method import Method

qkv_norm = Method(
    "qkv_norm",
    (QKNorm(), VNorm(), PreNormRemoval()),
    Source(
        title="Methods of improving LLM training stability",
        arxiv="2410.16682",
        place="method 8",
        equation="[Q, K, V] = x W_QKV, O = softmax(LN(Q) LN(K)^T / sqrt(K) + mask) LN(V)",
        deviations=(*QKNorm.source.deviations, "the pre-norm before FC1 is kept"),
    ),
)
