"""A study: many runs that measure, for each arm, how far the learning rate can be raised before training breaks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab.study.study import Study, load_study

__all__ = ["Study", "load_study"]


def __getattr__(name: str) -> object:
    """Import ``Study`` and ``load_study`` on first use, because they import torch, which is slow."""
    if name in __all__:
        return getattr(importlib.import_module("trimtab.study.study"), name)
    raise AttributeError(f"module 'trimtab.study' has no attribute '{name}'")
