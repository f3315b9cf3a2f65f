"""Low-rank queries, keys and values that start as large as plain ones: low rank without a smaller init."""

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
        deviations=("the paper's initial weights are not known to us; these tell low rank from a smaller init",),
    ),
)
