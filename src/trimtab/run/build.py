"""Build the model, the optimizer and the rules of a run from its specification."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trimtab.host import Host, Part, PartView, evaluating, stored_weight
from trimtab.hosts import UnknownFamilyError, host_for, host_or_model
from trimtab.intervention import Intervention, ModelIntervention, Trained
from trimtab.loop import Rules
from trimtab.method import family_matrices, install, installed_in, method_parameters
from trimtab.models.gpt import GPT
from trimtab.optim import OptimizerError, TrainedParameter
from trimtab.rules import start
from trimtab.run.spec import RunSpec

HIDDEN = (Part.Q, Part.K, Part.V, Part.PROJ, Part.FC1, Part.FC2)


def build(spec: RunSpec, device: torch.device) -> nn.Module:
    """The model with its method installed. The initial weights depend only on ``seeds.init``."""
    torch.manual_seed(spec.seeds.init)
    builder = spec.code.model or GPT
    model = builder(spec.protocol.model).to(device)
    edits = [i for i in spec.interventions if isinstance(i, ModelIntervention)]
    if edits:
        install(edits, host_for(model))
    torch.manual_seed(spec.seeds.other)
    return model


def build_optimizer(model: nn.Module, spec: RunSpec) -> torch.optim.Optimizer:
    """The optimizer that user code builds, if the specification has such code; otherwise the configured optimizer.

    Raises:
        OptimizerError: if the optimizer cannot train this model, or ``optimizer.rates`` is set and user code builds the
            optimizer.
    """
    if spec.code.optimizer is not None:
        if spec.protocol.optimizer.rates.changed():
            raise OptimizerError(
                "optimizer.rates: the optimizer is built by your own code, which sets the LR of its groups; "
                "remove optimizer.rates"
            )
        return spec.code.optimizer(model, spec.learning_rate)
    return spec.protocol.optimizer.build(trained_parameters(model, spec.interventions), spec.learning_rate)


def start_rules(model: nn.Module, optimizer: torch.optim.Optimizer, spec: RunSpec) -> Rules:
    """The rules of the interventions, in order of installation."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = host_or_model(model)
    host = found if isinstance(found, Host) else None
    return start(spec.interventions, Trained(model=model, parameters=parameters, optimizer=optimizer, host=host))


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


def weight_matrices(model: nn.Module) -> Callable[[], Sequence[Tensor]]:
    """A function that returns the effective weight matrices, or every matrix if no host knows the model."""
    try:
        host = host_for(model)
    except UnknownFamilyError:
        return lambda: [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    return lambda: family_matrices(host)


def weight_norm(model: nn.Module, matrices: Callable[[], Sequence[Tensor]]) -> Tensor:
    """L2 norm over all entries of all matrices, in fp32. In eval mode, reading a weight changes no state."""
    with evaluating(model), torch.no_grad():
        return torch.nn.utils.get_total_norm([matrix.float() for matrix in matrices()])
