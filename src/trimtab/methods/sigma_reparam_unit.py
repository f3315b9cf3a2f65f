"""sigmaReparam as in the text of its paper: every spectral norm starts at 1."""

from __future__ import annotations

from dataclasses import replace

from trimtab.interventions.sigma_reparam import SigmaReparam
from trimtab.method import Method

sigma_reparam_unit = Method(
    "sigma_reparam_unit",
    (SigmaReparam(gamma="one"),),
    replace(
        SigmaReparam.source,
        place="equation of the method, gamma = 1 at first",
        equation="W_eff = (gamma / sigma(W)) W, gamma = 1 at first",
        deviations=("layer norms are kept; the rule covers QKV, Proj, FC1 and FC2; a fused QKV counts as one matrix",),
    ),
)
