"""Number of NaN and infinite entries; all other statistics leave them out."""

from __future__ import annotations

from trimtab.probe import TensorProbe

NON_FINITE = TensorProbe(
    slug="non_finite",
    unit="entries",
    meaning="NaN and infinite entries; all other statistics leave them out",
    cost="cheap",
    value=lambda m: m.non_finite,
    from_norm=True,
)
