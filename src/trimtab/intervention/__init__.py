"""The kinds of intervention, and the source that each intervention cites.

An intervention is of exactly one kind: ``ModelEdit``, ``ModuleSwap``, ``WeightRule`` and ``InitRule`` change the model
when they are installed; ``LossTerm``, ``GradientRule`` and ``UpdateRule`` act in every training step.
"""

from trimtab.intervention.contract import ConflictError, Intervention, Source, TrainedModelError
from trimtab.intervention.model import (
    InitRule,
    ModelEdit,
    ModelIntervention,
    ModuleSwap,
    WeightRule,
    is_trained,
    weights_follow,
)
from trimtab.intervention.rule import (
    GradientRule,
    LogZ,
    LossTerm,
    Rule,
    RunningLossTerm,
    RunningRule,
    RunningStackedRule,
    RunningUpdateRule,
    Stateful,
    Trained,
    UpdateRule,
)

__all__ = [
    "ConflictError",
    "GradientRule",
    "InitRule",
    "Intervention",
    "LogZ",
    "LossTerm",
    "ModelEdit",
    "ModelIntervention",
    "ModuleSwap",
    "Rule",
    "RunningLossTerm",
    "RunningRule",
    "RunningStackedRule",
    "RunningUpdateRule",
    "Source",
    "Stateful",
    "Trained",
    "TrainedModelError",
    "UpdateRule",
    "WeightRule",
    "is_trained",
    "weights_follow",
]
