"""Method 7: qk_norm followed by soft_cap."""

from __future__ import annotations

from trimtab.intervention import Source
from trimtab.interventions.qk_norm import QKNorm
from trimtab.interventions.soft_cap import SoftCap
from trimtab.method import Method

qk_norm_cap = Method(
    "qk_norm_cap",
    (QKNorm(), SoftCap()),
    Source(
        title="Methods of improving LLM training stability",
        arxiv="2410.16682",
        place="method 7",
        equation="S = LN(Q) LN(K)^T / sqrt(K), S' = c tanh(S / c), c = 50",
        deviations=QKNorm.source.deviations,
    ),
)
