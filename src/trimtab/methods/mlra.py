"""Low-rank queries, keys and values: each projection is a product of two thin factors."""

from __future__ import annotations

from trimtab.interventions.mlra import MLRA
from trimtab.method import Method

mlra = Method("mlra", (MLRA(),), MLRA.source)
