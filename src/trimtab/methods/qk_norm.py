"""Method 6: layer norm on queries and keys."""

from __future__ import annotations

from trimtab.interventions.qk_norm import QKNorm
from trimtab.method import Method

qk_norm = Method(
    "qk_norm",
    (QKNorm(),),
    QKNorm.source,
)
