"""FLOPs are those of torch's own counter, for every method, with and without values."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.run.products import ProductCounter

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
