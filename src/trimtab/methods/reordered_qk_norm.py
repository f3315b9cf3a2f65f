"""Reordered norm with QK-norm over the whole width: the block of OLMo 2."""

from __future__ import annotations

from dataclasses import replace

from trimtab.interventions.qk_norm import QKNorm
from trimtab.method import Method
from trimtab.methods.reordered_norm import reordered_norm

reordered_qk_norm = Method(
    "reordered_qk_norm",
    (*reordered_norm.interventions, QKNorm(norm="rms_norm", across="width")),
    replace(
        reordered_norm.source,
        place="reordered norm and QK-norm",
        equation="x <- x + RMSNorm(attn(x)); x <- x + RMSNorm(mlp(x)); S = RMSNorm(Q) RMSNorm(K)^T / sqrt(K)",
        deviations=("eps is 1e-6",),
    ),
)
