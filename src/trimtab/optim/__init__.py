"""Optimizers, one per file, and the learning-rate schedule.

An optimizer is looked up by its slug, which is its tag in a config file. To add an optimizer, add a file to this
folder, or an entry point of the group ``trimtab.optimizers`` to another package.
"""

from __future__ import annotations

from inspect import isabstract

from trimtab.optim.adamw import AdamW
from trimtab.optim.composite import CompositeOptimizer
from trimtab.optim.contract import Decay, OptimizerConfig, OptimizerError, Rates, TrainedParameter
from trimtab.optim.muon import Muon
from trimtab.optim.muon_h import MuonH
from trimtab.optim.schedule import ScheduleConfig
from trimtab.optim.stable_adamw import StableAdamW
from trimtab.optim.torch_optimizer import TorchOptimizer
from trimtab.registry import Catalogue

__all__ = [
    "AdamW",
    "CompositeOptimizer",
    "Decay",
    "Muon",
    "MuonH",
    "OptimizerConfig",
    "OptimizerError",
    "Rates",
    "ScheduleConfig",
    "StableAdamW",
    "TorchOptimizer",
    "TrainedParameter",
    "catalogue",
]

_CATALOGUE = Catalogue[type[OptimizerConfig]](
    __name__,
    lambda value: isinstance(value, type) and issubclass(value, OptimizerConfig) and not isabstract(value),
    lambda optimizer: optimizer.slug(),
    first="adamw",
    group="trimtab.optimizers",
)


def catalogue() -> dict[str, type[OptimizerConfig]]:
    """Every optimizer by slug, including those of other packages; adamw first, the others in alphabetical order."""
    return _CATALOGUE.all()
