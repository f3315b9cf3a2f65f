"""Build the model, the optimizer and the rules of a run from its specification."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trimtab.host import evaluating
from trimtab.hosts import UnknownFamilyError, host_for
from trimtab.intervention import ModelIntervention, UpdateRule
from trimtab.loop import Rules
from trimtab.method import family_matrices, install
from trimtab.models.gpt import GPT
from trimtab.optim import OptimizerError
from trimtab.parameters import trained_parameters
from trimtab.rules import start, trained_of
from trimtab.run.spec import RunSpec


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


def check_optimizer(model: nn.Module, spec: RunSpec) -> torch.optim.Optimizer | None:
    """Refuse what ``build_optimizer`` refuses; the optimizer, if a rule or user code needs one to be checked.

    Raises:
        OptimizerError: as for ``build_optimizer``.
    """
    if spec.code.optimizer is not None or any(isinstance(one, UpdateRule) for one in spec.interventions):
        return build_optimizer(model, spec)
    spec.protocol.optimizer.check(trained_parameters(model, spec.interventions), spec.learning_rate)
    return None


def start_rules(model: nn.Module, optimizer: torch.optim.Optimizer | None, spec: RunSpec) -> Rules:
    """The rules of the interventions, in order of installation."""
    return start(spec.interventions, trained_of(model, optimizer))


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
