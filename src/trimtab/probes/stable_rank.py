"""Stable rank of a weight matrix: how many directions its norm is spread over."""

from __future__ import annotations

from trimtab.probe import MatrixProbe

STABLE_RANK = MatrixProbe(
    slug="stable_rank",
    unit="1",
    meaning="squared Frobenius norm over squared spectral norm: 1 for a matrix of rank one, the rank at most",
    cost="full",
    value=lambda spectral, frobenius: frobenius / spectral,
)
