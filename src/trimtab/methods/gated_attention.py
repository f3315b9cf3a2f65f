"""A sigmoid gate on the head outputs."""

from __future__ import annotations

from trimtab.interventions.attention_gate import AttentionGate
from trimtab.method import Method

gated_attention = Method("gated_attention", (AttentionGate(),), AttentionGate.source)
