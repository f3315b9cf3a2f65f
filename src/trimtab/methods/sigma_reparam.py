"""Method 1: every linear weight is divided by its spectral norm and multiplied by a learnable scalar."""

from __future__ import annotations

from trimtab.interventions.sigma_reparam import SigmaReparam
from trimtab.method import Method

sigma_reparam = Method(
    "sigma_reparam",
    (SigmaReparam(),),
    SigmaReparam.source,
)
