"""Weights of Proj, FC1 and FC2 preconditioned by a polynomial of their singular values."""

from __future__ import annotations

from trimtab.interventions.pc_layer import PCLayer
from trimtab.method import Method

pc_layer = Method("pc_layer", (PCLayer(),), PCLayer.source)
