"""FLOPs are those of torch's own counter, for every method, with and without values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.intervention import GradientRule
from trimtab.run.cost import _is_foreign
from trimtab.run.products import ProductCounter, count_flops
from trimtab.run.reading import read_run
from trimtab.run.spec import UserCode


class Branching(nn.Module):
    """A user's model with control flow of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.layer(x), lambda x: self.layer(self.layer(x)), (x,))


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Outside(GradientRule):
    """A rule of another package."""

    def start(self, parameters: Any) -> Any:
        raise NotImplementedError


CONFIG = GPTConfig(width=32, num_layers=2, num_heads=2, context=16)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("slug", sorted(methods.catalogue()))
def test_every_method_has_the_flops_that_torch_counts(slug: str, device: str) -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    methods.catalogue()[slug].install(host_for(model))
    model.eval().to(device)
    tokens = torch.zeros(1, CONFIG.context, dtype=torch.long, device=device)
    counter, theirs = ProductCounter(), FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with counter:
            model(tokens)
        with theirs:
            model(tokens)
    assert counter.flops == theirs.get_total_flops() > 1e6


def test_control_flow_of_a_users_model_is_counted() -> None:
    model, x = Branching(), torch.ones(2, 8)
    with torch.no_grad():
        assert count_flops(lambda: model(x), foreign=True) == 2 * (2 * 2 * 8 * 8)  # the costlier branch


def test_a_users_model_and_rule_are_foreign_and_ours_are_not() -> None:
    ours = read_run({"method": "soft_cap", "learning_rate": 0.01}, "test")
    assert not _is_foreign(ours)
    assert _is_foreign(replace(ours, code=UserCode(model=lambda config: Branching())))
    assert _is_foreign(replace(ours, method=(*ours.method, Outside())))
