"""Query and key weights rescaled where attention scores are too large."""

from __future__ import annotations

from trimtab.interventions.qk_clip import QKClip
from trimtab.method import Method

qk_clip = Method("qk_clip", (QKClip(),), QKClip.source)
