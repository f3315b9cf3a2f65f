"""Runs of one arm, which differ in LR and seeds, trained as one stacked model."""

from __future__ import annotations

from trimtab.population.stack import NotStackableError, Stack, refusing

__all__ = ["NotStackableError", "Stack", "refusing"]
