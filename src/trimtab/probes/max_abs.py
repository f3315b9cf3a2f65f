"""Largest magnitude among a tensor's entries."""

from __future__ import annotations

from trimtab.probe import TensorProbe

MAX_ABS = TensorProbe(
    slug="max_abs",
    unit="of the tensor",
    meaning="largest magnitude among the entries",
    source="arXiv 2608.30320, section 3.3 (per-block maximum activation)",
    cost="cheap",
    value=lambda m: m.largest,
)
