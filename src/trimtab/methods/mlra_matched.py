"""Control for the smaller init of mlra: low-rank products that start at the standard deviation of plain matrices."""

from __future__ import annotations

from trimtab.intervention import Source
from trimtab.interventions.mlra import MLRA
from trimtab.method import Method

mlra_matched = Method(
    "mlra_matched",
    (MLRA(init="variance_matched"),),
    Source(
        title=MLRA.source.title,
        arxiv=MLRA.source.arxiv,
        place="a control of ours",
        equation="W_Q = U_Q D_Q, ..., std of each product that of the plain matrix",
        deviations=(
            "the paper's initial weights are unknown to us; this control separates low rank from a smaller init",
        ),
    ),
)
