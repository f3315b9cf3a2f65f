"""Every matrix stored at one scale behind a learnable gate."""

from __future__ import annotations

from trimtab.interventions.weight_gate import WeightGate
from trimtab.method import Method

wesar = Method("wesar", (WeightGate(),), WeightGate.source)
