"""Method 1: every linear weight over its spectral norm, times a learnable scalar."""

from __future__ import annotations

from trimtab.interventions.sigma_reparam import SigmaReparam
from trimtab.method import Method

sigma_reparam = Method(
    "sigma_reparam",
    (SigmaReparam(),),
    SigmaReparam.source,
)
