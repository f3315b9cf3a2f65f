"""The global gradient norm clipped by its z-score, in place of global clipping."""

from __future__ import annotations

from trimtab.interventions.z_clip import ZClip
from trimtab.method import Method

z_clip = Method("z_clip", (ZClip(),), ZClip.source)
