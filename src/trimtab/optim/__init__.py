"""Optimizers, one file each, read by tag like data sources; and the learning-rate schedule.

An optimizer is found by its slug; a new file in this folder, or an entry point ``trimtab.optim`` of another package, is
all it takes.
"""

from __future__ import annotations

from inspect import isabstract

from trimtab.optim.adamw import AdamW
from trimtab.optim.composite import CompositeOptimizer
from trimtab.optim.contract import OptimizerConfig, OptimizerError, Rates, TrainedParameter
from trimtab.optim.muon import Muon
from trimtab.optim.schedule import ScheduleConfig
from trimtab.registry import Catalogue

__all__ = [
    "AdamW",
    "CompositeOptimizer",
    "Muon",
    "OptimizerConfig",
    "OptimizerError",
    "Rates",
    "ScheduleConfig",
    "TrainedParameter",
    "catalogue",
]

_CATALOGUE = Catalogue[type[OptimizerConfig]](
    __name__,
    lambda value: isinstance(value, type) and issubclass(value, OptimizerConfig) and not isabstract(value),
    lambda optimizer: optimizer.slug(),
    first="adamw",
)


def catalogue() -> dict[str, type[OptimizerConfig]]:
    """Every optimizer by slug, also those of other packages; adamw first, the rest in alphabetical order."""
    return _CATALOGUE.all()
