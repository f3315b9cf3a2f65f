"""What a watch reads: the model, its watched places, and the settings of the reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from trimtab.host import AttentionPoint, Point
from trimtab.probe import Preset
from trimtab.watching.fused import fused_measure
from trimtab.watching.measure import Measure, measure
from trimtab.watching.metric import Place
from trimtab.watching.padding import Padding
from trimtab.watching.parameters import KeyedParameters, Matrix, Weight
from trimtab.watching.ranks import Ranks

LOGITS = Place("logits", "model")


@dataclass(frozen=True)
class Subject:
    """A model and the places of it that are watched.

    Attributes:
        points: tensors at the edges of modules, with their places; several points may share a place.
        attentions: attention layers, with their places.
        weights: weights by role, or of the chosen modules.
        matrices: single weight matrices, read by calling them.
        preset: the probes, and how many positions those that sample look at.
        optimizers: the optimizers whose steps are read; none where readings end by hand.
        ranks: the processes whose readings are merged.
        padding: of the forward pass that runs.
        fused: whether to read by kernels; see ``trimtab.watch``.
    """

    model: nn.Module
    points: Sequence[tuple[Place, Point]]
    attentions: Sequence[tuple[Place, AttentionPoint]]
    weights: Sequence[Weight]
    matrices: Sequence[tuple[Place, Matrix]]
    preset: Preset
    optimizers: Sequence[torch.optim.Optimizer]
    ranks: Ranks
    padding: Padding
    fused: bool = False

    @property
    def measure(self) -> Measure:
        """Takes the moments of a tensor."""
        return fused_measure if self.fused else measure

    @cached_property
    def forward(self) -> list[Place]:
        """The places of tensors that pass in a forward pass, each once."""
        return list(dict.fromkeys(place for place, _ in self.points))

    @cached_property
    def backward(self) -> list[Place]:
        """The places of gradients that pass in a backward pass, each once; none if the preset reads no gradients."""
        with_gradient = dict.fromkeys(place for place, point in self.points if point.gradient)
        if not self.preset.gradients:
            return []
        return [gradient_of(place) for place in with_gradient if place.what != LOGITS.what]

    @cached_property
    def parameters(self) -> KeyedParameters:
        """The parameters of the model with their places."""
        return KeyedParameters(self.model, self.weights)


def gradient_of(place: Place) -> Place:
    """The place of the gradient with respect to a tensor."""
    return Place(f"{place.what}_grad", place.where)
