"""A sigmoid gate on what attention hands on."""

from __future__ import annotations

from trimtab.interventions.attention_gate import AttentionGate
from trimtab.method import Method

gated_attention = Method("gated_attention", (AttentionGate(),), AttentionGate.source)
