"""The weights and parameters of a model, each with its place in metric keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trimtab.host import Host, Part, PartView, evaluating, stored_weight
from trimtab.watching.metric import Place, where_of

ROLES = {
    Part.Q: "qkv",
    Part.K: "qkv",
    Part.V: "qkv",
    Part.PROJ: "proj",
    Part.FC1: "fc1",
    Part.FC2: "fc2",
    Part.EMBEDDING: "embedding",
    Part.HEAD: "head",
}
MATRICES = (Part.Q, Part.K, Part.V, Part.PROJ, Part.FC1, Part.FC2)
Matrix = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of one module that plays a role, or of a module chosen by name; ``name`` is its attribute."""

    place: Place
    module: nn.Module
    name: str = "weight"

    @property
    def stored(self) -> nn.Parameter | None:
        """The parameter behind the weight."""
        return stored_weight(self.module) if self.name == "weight" else getattr(self.module, self.name)

    def effective(self) -> Tensor:
        """The weight that the forward pass uses; reading it alters no state of a parametrization."""
        if self.name != "weight" or not parametrize.is_parametrized(self.module, "weight"):
            return cast(Tensor, getattr(self.module, self.name)).detach()
        rules = cast(Any, self.module).parametrizations.weight
        with evaluating(rules), torch.no_grad():
            return cast(Tensor, self.module.weight).detach()


class KeyedParameters:
    """Every parameter of a model with its place, found by name: ``fully_shard`` replaces the parameter objects.

    Attributes:
        place_of: the place of each parameter by its name.
        places: all places, each once, in the order of the model.
    """

    def __init__(self, model: nn.Module, weights: Sequence[Weight]) -> None:
        self._model = model
        roles = {id(weight.stored): weight.place for weight in weights if weight.stored is not None}
        self.place_of = {
            plain(name): roles.get(id(p), Place("parameter", plain(name))) for name, p in model.named_parameters()
        }
        self.places = list(dict.fromkeys(self.place_of.values()))

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters as they are now, by name."""
        named = ((plain(name), p) for name, p in self._model.named_parameters())
        return [(name, p) for name, p in named if name in self.place_of]

    def placed(self) -> list[tuple[Place, nn.Parameter]]:
        """The parameters as they are now, each with its place."""
        return [(self.place_of[name], p) for name, p in self.named()]


def weights_of(host: Host) -> list[Weight]:
    """The weights of the roles of a host, each module once; a tied head counts as the embedding only."""
    weights: dict[int, Weight] = {}
    stored: set[int] = set()
    for view in host.find_parts():
        if view.part in ROLES and id(view.module) not in weights:
            weight = Weight(Place(f"{ROLES[view.part]}_weight", where_of(view.layer)), view.module)
            # A product of factors has no stored parameter.
            identity = id(view.module if weight.stored is None else weight.stored)
            if identity not in stored:
                stored.add(identity)
                weights[id(view.module)] = weight
    return list(weights.values())


def matrices_of(host: Host) -> list[tuple[Place, Matrix]]:
    """Every effective matrix of Q, K, V, Proj, FC1 and FC2 by itself, with its place."""
    views = [view for view in host.find_parts() if view.part in MATRICES]
    roles = [(view.part, view.layer) for view in views]
    keyed: list[tuple[Place, Matrix]] = []
    for view in views:
        where = where_of(view.layer)
        if roles.count((view.part, view.layer)) > 1:  # gate and up
            where = f"{where}.{view.attribute}"
        keyed.append((Place(f"{view.part}_weight", where), partial(_matrix, view)))
    return keyed


def _matrix(view: PartView) -> Tensor:
    with evaluating(view.module), torch.no_grad():
        return view.weight.detach()


def plain(name: str) -> str:
    """A parameter's name without what wrappers put into it after the probes were attached."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")
