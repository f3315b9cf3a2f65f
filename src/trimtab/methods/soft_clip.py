"""Method 4: clipped softmax."""

from __future__ import annotations

from trimtab.interventions.soft_clip import SoftClip
from trimtab.method import Method

soft_clip = Method(
    "soft_clip",
    (SoftClip(),),
    SoftClip.source,
)
