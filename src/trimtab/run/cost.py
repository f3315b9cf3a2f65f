"""The cost of a model: its parameters, and its FLOPs per token, counted on one forward pass without training."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from trimtab.host import Part
from trimtab.hosts import UnknownFamilyError, host_for, parameter_counts
from trimtab.models.gpt import GPT, GPTConfig
from trimtab.run.build import build
from trimtab.run.products import count_flops
from trimtab.run.spec import RunSpec

BACKWARD = 2  # the backward pass has two matrix products for each matrix product of the forward pass
OUTSIDE = frozenset({Part.EMBEDDING, Part.FINAL_NORM, Part.HEAD})


@dataclass(frozen=True, slots=True)
class ModelCost:
    """The number of parameters of a model and its FLOPs per token.

    Attributes:
        parameters: number of trained parameters.
        of_method: ``parameters`` minus the number of trained parameters without the method.
        of_blocks: number of trained parameters in the blocks, without embedding, positions, final norm and head; equal
            to ``parameters`` if no host knows the model.
        flops_per_token: FLOPs of the matrix products and of attention, forward and backward, at full context. The work
            of a parametrization on the weights is excluded, because it does not grow with the number of tokens.
    """

    parameters: int
    of_method: int
    of_blocks: int
    flops_per_token: float

    def table(self) -> dict[str, float]:
        """As plain values."""
        return asdict(self)


def cost_of(spec: RunSpec) -> ModelCost:
    """The cost of a run's model.

    A model for a GPU is counted on the meta device, since it may be too large for this machine, unless user code builds
    it or a method needs values of its weights. Every other model is counted on the CPU, which takes half of the time.
    """
    if spec.protocol.training.device != "cpu" and spec.code.model is None:
        try:
            return _counted(spec, torch.device("meta"))
        except RuntimeError:  # also NotImplementedError; a fault of the model itself is raised again on the CPU
            pass  # a method reads values of weights, for example to compute a spectral norm
    return _counted(spec, torch.device("cpu"))


class _WithoutValues(TorchFunctionMode):
    """Skips the drawing of initial values, which the meta device does not store and is slow to draw."""

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_RANDOM = (torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.trunc_normal_, nn.init.uniform_)


def _without_method(spec: RunSpec, device: torch.device) -> int:
    """Trained parameters of the same model without the method."""
    if spec.code.model is None:
        return _count_of_decoder(spec.protocol.model)
    return _count(build(replace(spec, method=()), device))


@lru_cache
def _count_of_decoder(config: GPTConfig) -> int:
    """Trained parameters of the reference decoder; most arms of a study share one."""
    with torch.device("meta"), _WithoutValues():
        return _count(GPT(config))


def _counted(spec: RunSpec, device: torch.device) -> ModelCost:
    with device, _WithoutValues() if device.type == "meta" else nullcontext():
        model = build(spec, device)
        context = spec.protocol.model.context
        model.eval()
        tokens = torch.zeros(1, context, dtype=torch.long)
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            flops = count_flops(lambda: model(tokens), foreign=_is_foreign(spec))
    total = _count(model)
    return ModelCost(
        parameters=total,
        of_method=total - (_without_method(spec, device) if spec.method else total),
        of_blocks=_in_blocks(model),
        flops_per_token=(1 + BACKWARD) * flops / context,
    )


def _is_foreign(spec: RunSpec) -> bool:
    """Whether the forward pass runs code from outside trimtab."""
    return spec.code.model is not None or any(
        not type(one).__module__.startswith("trimtab.") for one in spec.interventions
    )


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _in_blocks(model: nn.Module) -> int:
    try:
        counts = parameter_counts(host_for(model))
    except UnknownFamilyError:
        return _count(model)
    return sum(count for part, count in counts.items() if part not in OUTSIDE)
