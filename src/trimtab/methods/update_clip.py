"""The rule of StableAdamW on the updates of any optimizer."""

from __future__ import annotations

from trimtab.interventions.update_clip import UpdateClip
from trimtab.method import Method

update_clip = Method("update_clip", (UpdateClip(),), UpdateClip.source)
