"""Share of entries whose second moment in Adam is so small that eps dominates the update."""

from __future__ import annotations

from trimtab.probe import AdamProbe

BELOW_EPS = AdamProbe(
    slug="below_eps",
    unit="share",
    meaning="share of entries with sqrt(v) below eps, v bias-corrected: their updates vanish",
    source="arXiv 2309.14322, section 3.4",
    cost="standard",
    total=lambda gradient, second, eps: (second.sqrt() < eps).sum(),
)
