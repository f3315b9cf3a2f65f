"""``output_attentions=True`` of transformers, on models whose scores or weights are edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trimtab import host_for, methods
from trimtab.host import Site
from trimtab.interventions import SoftCap
from trimtab.method import install
from trimtab.testing.families import hugging_face

IDS = torch.arange(8)[None]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("base", ["eager", "sdpa"])
def test_attention_weights_are_those_after_the_edits(model_type: str, base: str) -> None:
    pytest.importorskip("transformers")
    model: Any = hugging_face(model_type).eval()
    model.set_attn_implementation(base)
    host = host_for(model)
    methods.soft_clip.install(host)
    seen: list[torch.Tensor] = []
    for layer in range(2):
        (tap,) = (tap for tap in host.find_taps() if tap.site is Site.WEIGHTS and tap.layer == layer)
        tap.slot.watch(lambda before, after: seen.append(after))
    with torch.no_grad():
        weights = model(IDS, output_attentions=True).attentions
    assert len(weights) == len(seen) == 2
    for given, edited in zip(weights, seen, strict=True):
        assert torch.equal(given, edited)
    assert bool((weights[0] == 0).any())


def test_a_gemma_without_a_cap_takes_the_method() -> None:
    pytest.importorskip("transformers")
    model: Any = hugging_face("gemma2", attn_logit_softcapping=None, attn_implementation="eager").eval()
    with torch.no_grad():
        plain = model(IDS).logits
        install([SoftCap(cap=0.01)], host_for(model))
        assert not torch.equal(model(IDS).logits, plain)
