"""Many runs, one question: how far can the learning rate be pushed before training breaks, per arm."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab.study.study import Study, load_study

__all__ = ["Study", "load_study"]


def __getattr__(name: str) -> object:
    """Import what trains when it is first used: the command line asks here for an error's name alone."""
    if name in __all__:
        return getattr(importlib.import_module("trimtab.study.study"), name)
    raise AttributeError(f"module 'trimtab.study' has no attribute '{name}'")
