"""The trained parameters of a model with the parts that they belong to, and optimizers of the catalogue for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimtab.host import Part, PartView, stored_weight
from trimtab.hosts import UnknownFamilyError, host_for
from trimtab.intervention import Intervention, ModelIntervention
from trimtab.method import installed_in, method_parameters
from trimtab.optim import OptimizerConfig, TrainedParameter

HIDDEN = (Part.Q, Part.K, Part.V, Part.PROJ, Part.FC1, Part.FC2)


def optimizer_for(model: nn.Module, config: OptimizerConfig, learning_rate: float) -> torch.optim.Optimizer:
    """An optimizer of the catalogue for a model, with its methods installed, in a training loop of your own.

    Args:
        model: a model; a family that a host knows has parts, which rates, decay and Muon depend on.
        config: such as ``trimtab.optim.Muon()``.
        learning_rate: the peak LR. A scheduler of torch multiplies the LR of each group.

    Raises:
        OptimizerError: if the optimizer cannot train the model.
    """
    interventions = [receipt.intervention for receipt in installed_in(model)]
    return config.build(trained_parameters(model, interventions), learning_rate)


def trained_parameters(model: nn.Module, interventions: Sequence[Intervention] = ()) -> list[TrainedParameter]:
    """Every trained parameter, with the parts of the model that it belongs to.

    Args:
        model: the model with its method installed.
        interventions: the interventions of the method. They declare whether the matrices that they add are hidden
            matrices.
    """
    views = _views_of(model)
    parts = _parts_of(views)
    transposed = {id(view.stored) for view in views if view.transposed and view.stored is not None}
    rows = _rows_of(views)
    of_methods = method_parameters(model)
    added = _hidden_of_methods(model, interventions)
    return [
        TrainedParameter(
            name=name,
            parameter=parameter,
            parts=parts.get(id(parameter), ()),
            decays=parameter.ndim >= 2 and parameter not in of_methods,
            hidden=parameter.ndim in (2, 3)
            and parameter not in of_methods
            and (id(parameter) in added or any(part in HIDDEN for part in parts.get(id(parameter), ()))),
            transposed=id(parameter) in transposed,
            rows=rows.get(id(parameter), ()) if parameter.ndim == 2 else (),
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


def _views_of(model: nn.Module) -> Sequence[PartView]:
    """The parts of a model; none if no host knows it."""
    try:
        return host_for(model).find_parts()
    except UnknownFamilyError:
        return ()


def _parts_of(views: Sequence[PartView]) -> dict[int, tuple[Part, ...]]:
    """The parts of each parameter, by its identifier."""
    parts: dict[int, tuple[Part, ...]] = {}
    for view in views:
        for parameter in view.module.parameters():
            so_far = parts.get(id(parameter), ())
            parts[id(parameter)] = so_far if view.part in so_far else (*so_far, view.part)
    return parts


def _rows_of(views: Sequence[PartView]) -> dict[int, tuple[slice | Tensor, ...]]:
    """The outputs of the parts that share a stored matrix, by the identifier of the parameter."""
    rows: dict[int, tuple[slice | Tensor, ...]] = {}
    for view in views:
        if view.stored is not None and view.rows is not None:
            rows[id(view.stored)] = (*rows.get(id(view.stored), ()), view.rows)
    return rows


def _hidden_of_methods(model: nn.Module, interventions: Sequence[Intervention]) -> set[int]:
    """Identifiers of the weights of linear layers that methods add and declare as hidden matrices."""
    declared = {i.slug() for i in interventions if isinstance(i, ModelIntervention) and i.adds_hidden_matrices}
    linears = [
        module
        for installed in installed_in(model)
        if installed.slug in declared
        for change in installed.changes
        for owner in change.own_modules()
        for module in owner.modules()
        if isinstance(module, nn.Linear)
    ]
    return {id(stored_weight(linear)) for linear in linears}
