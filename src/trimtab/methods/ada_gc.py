"""Gradients clipped by their own history, in place of global clipping."""

from __future__ import annotations

from trimtab.interventions.ada_gc import AdaGC
from trimtab.method import Method

ada_gc = Method("ada_gc", (AdaGC(),), AdaGC.source)
