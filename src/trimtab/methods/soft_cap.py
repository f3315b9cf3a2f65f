"""Method 3: attention scores bounded by a scaled tanh."""

from __future__ import annotations

from trimtab.interventions.soft_cap import SoftCap
from trimtab.method import Method

soft_cap = Method(
    "soft_cap",
    (SoftCap(),),
    SoftCap.source,
)
