"""Spectral norm of a weight matrix, by Lanczos iteration."""

from __future__ import annotations

from trimtab.probe import MatrixProbe

SPECTRAL_NORM = MatrixProbe(
    slug="spectral_norm",
    unit="of the weight",
    meaning="largest singular value, from below, by Lanczos iteration that goes on from reading to reading",
    source="arXiv 2303.06296, section 3",
    cost="full",
    value=lambda spectral, frobenius: spectral.sqrt(),
)
