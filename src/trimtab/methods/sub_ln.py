"""Sub-LN: a second norm inside each branch, and initial weights scaled up with depth."""

from __future__ import annotations

from dataclasses import replace

from trimtab.interventions.depth_init import DepthInit
from trimtab.interventions.inner_norm import InnerNorm
from trimtab.method import Method

sub_ln = Method(
    "sub_ln",
    (DepthInit(law="sub_ln"), InnerNorm()),
    replace(
        InnerNorm.source,
        equation=f"{InnerNorm.source.equation}; Xavier init, V, Proj, FC1, FC2 times sqrt(ln 2N)",
        deviations=(*InnerNorm.source.deviations, *DepthInit.source.deviations),
    ),
)
