"""What a model costs before it is trained: parameters, and FLOPs per token, counted on one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from trimtab.method import method_parameters
from trimtab.run.execute import build
from trimtab.run.spec import RunSpec

BACKWARD = 2  # the backward pass has two matrix products for each of the forward pass


@dataclass(frozen=True, slots=True)
class Cost:
    """The size of a model.

    Attributes:
        parameters: all that are trained.
        of_method: those among them that the method added.
        flops_per_token: of forward and backward at full context, matrix products and attention; without what a
            parametrization spends on weights, which does not grow with the tokens.
    """

    parameters: int
    of_method: int
    flops_per_token: float


def cost_of(spec: RunSpec) -> Cost:
    """Build the model of a run on the CPU and count."""
    model = build(spec, torch.device("cpu"))
    context = spec.protocol.model.context
    counter = FlopCounterMode(display=False)
    model.eval()
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        model(torch.zeros(1, context, dtype=torch.long))
    trained = [p for p in model.parameters() if p.requires_grad]
    own = method_parameters(model)
    return Cost(
        parameters=sum(p.numel() for p in trained),
        of_method=sum(p.numel() for p in trained if p in own),
        flops_per_token=(1 + BACKWARD) * counter.get_total_flops() / context,
    )
