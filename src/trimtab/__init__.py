"""trimtab: small training runs that tell how far the learning rate of a big one can be pushed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab import interventions, methods, optim, probes, rules
    from trimtab.hosts import host_for
    from trimtab.loop import train
    from trimtab.method import Method
    from trimtab.models.gpt import GPT, GPTConfig
    from trimtab.parameters import optimizer_for
    from trimtab.study import Study, load_study
    from trimtab.watching import Watch, watch

__version__ = "0.2.0"

__all__ = [
    "GPT",
    "GPTConfig",
    "Method",
    "Study",
    "Watch",
    "host_for",
    "interventions",
    "load_study",
    "methods",
    "optim",
    "optimizer_for",
    "probes",
    "rules",
    "train",
    "watch",
]

_HOME = {
    "GPT": "trimtab.models.gpt",
    "GPTConfig": "trimtab.models.gpt",
    "Method": "trimtab.method",
    "Study": "trimtab.study",
    "host_for": "trimtab.hosts",
    "load_study": "trimtab.study",
    "Watch": "trimtab.watching",
    "optimizer_for": "trimtab.parameters",
    "train": "trimtab.loop",
    "watch": "trimtab.watching",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that a part which needs no torch stays light."""
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in __all__:
        return importlib.import_module(f"trimtab.{name}")
    raise AttributeError(f"module 'trimtab' has no attribute '{name}'")
