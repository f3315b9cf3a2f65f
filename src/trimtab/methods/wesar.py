"""WeSaR: all matrices stored at a common scale, each behind a learnable scalar gate."""

from __future__ import annotations

from trimtab.interventions.weight_gate import WeightGate
from trimtab.method import Method

wesar = Method("wesar", (WeightGate(),), WeightGate.source)
