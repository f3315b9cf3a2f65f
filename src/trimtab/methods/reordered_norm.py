"""Reordered norm: the norm moves from the input of each branch to its output."""

from __future__ import annotations

from trimtab.intervention import Source
from trimtab.interventions.branch_norm import BranchNorm
from trimtab.interventions.pre_norm_removal import PreNormRemoval
from trimtab.method import Method

reordered_norm = Method(
    "reordered_norm",
    (PreNormRemoval(norms=("attn_norm", "mlp_norm")), BranchNorm(norm="rms_norm")),
    Source(
        title="2 OLMo 2 Furious",
        arxiv="2501.00656",
        place="reordered norm",
        equation="x <- x + RMSNorm(attn(x)); x <- x + RMSNorm(mlp(x))",
        deviations=("without QK-norm, which OLMo 2 combines it with: see reordered_qk_norm", "eps is 1e-6"),
    ),
)
