"""Output logits bounded by a scaled tanh."""

from __future__ import annotations

from trimtab.interventions.logit_cap import LogitCap
from trimtab.method import Method

logit_cap = Method("logit_cap", (LogitCap(),), LogitCap.source)
