"""Samples of attention wait for the end of the step; when they are taken changes no reading."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.probes import attention_entropy
from trimtab.watching.meters import attention

LAYERS = 3
ENTROPIES = [f"attention/layer.{layer}.head.{head}/entropy" for layer in range(LAYERS) for head in range(2)]


def model_and_tokens() -> tuple[GPT, Tensor]:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=32, width=32, num_layers=LAYERS, num_heads=2, context=64))
    return model, torch.randint(0, 32, (4, 64), generator=torch.Generator().manual_seed(1))


def row_of(*, inference: bool = False) -> dict[str, float]:
    model, tokens = model_and_tokens()
    with watch(host_for(model), replace(probes.standard, query_rows=8)) as watching:
        with torch.inference_mode(inference):
            model(tokens)
        return watching.read()


def test_a_batch_that_is_too_large_to_wait_gives_the_same_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    late = row_of()
    assert set(ENTROPIES) < late.keys()
    one_layer = 4 * 2 * 12 * 64
    for most in (0, one_layer, 2 * one_layer):  # none waits; each pushes the one before it out; some
        monkeypatch.setattr(attention, "MOST_WAITING", most)
        assert row_of() == late


def test_products_that_wait_are_taken_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = row_of()
    monkeypatch.setattr("trimtab.watching.attention.BLOCK", {"cpu": 4 * 2 * 5 * 64, "cuda": 1})
    assert row_of() == pytest.approx(whole, rel=1e-6, abs=1e-7)


def test_a_reading_after_a_pass_in_inference_mode_has_attention() -> None:
    model, tokens = model_and_tokens()
    with watch(host_for(model), probes.standard) as watching:
        for _ in range(4):  # three errors would switch the probes off
            with torch.inference_mode():
                model(tokens)
            assert set(ENTROPIES) < watching.read().keys()
    assert row_of(inference=True) == row_of()


def test_a_probe_that_fails_in_one_layer_leaves_the_others_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = row_of()
    calls: list[int] = []

    def failing(scores: Tensor, visible: Tensor, weights: Tensor) -> Tensor:
        calls.append(len(calls))
        if len(calls) == 2:
            raise RuntimeError("of the second layer")
        return attention_entropy.attention_entropy(scores, visible, weights)

    broken = replace(attention_entropy.ATTENTION_ENTROPY, rows=failing)
    preset = replace(probes.standard, query_rows=8, probes=(broken,))
    monkeypatch.setattr(attention, "MOST_WAITING", 2 * 4 * 2 * 12 * 64)  # all three are taken when the third arrives
    model, tokens = model_and_tokens()
    with watch(host_for(model), preset) as watching:
        model(tokens)
        row = watching.read()
    assert len(calls) == LAYERS
    for layer in range(LAYERS):
        for head in range(2):
            key = f"attention/layer.{layer}.head.{head}/entropy"
            assert row.get(key) == (None if layer == 1 else sound[key])
