"""Method 9: qk_norm, and a layer norm after Proj and after FC2."""

from __future__ import annotations

from trimtab.intervention import Source
from trimtab.interventions.branch_norm import BranchNorm
from trimtab.interventions.qk_norm import QKNorm
from trimtab.method import Method

qk_fc_norm = Method(
    "qk_fc_norm",
    (QKNorm(), BranchNorm()),
    Source(
        title="Methods of improving LLM training stability",
        arxiv="2410.16682",
        place="method 9",
        equation="S = LN(Q) LN(K)^T / sqrt(K); x <- x + LN(Proj(...)); x <- x + LN(FC2(...))",
        deviations=(*QKNorm.source.deviations, *BranchNorm.source.deviations),
    ),
)
