"""Readings of a released model on real text, against the same quantities in double precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab import host_for, probes, watch
from trimtab.data.classics import TEXTS, read_text
from trimtab.watching import Watch

pytestmark = pytest.mark.nightly
BATCH, LENGTH = 4, 512


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    (file,) = smollm2.rglob("*.gguf")
    return transformers.AutoModelForCausalLM.from_pretrained(smollm2, gguf_file=file.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ids(smollm2: Path) -> Tensor:
    transformers = pytest.importorskip("transformers")
    (file,) = smollm2.rglob("*.gguf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2, gguf_file=file.name)
    text = read_text(TEXTS[0]).decode()[20_000:60_000]
    return torch.tensor(tokenizer(text).input_ids[: BATCH * LENGTH]).view(BATCH, LENGTH)


def readings(watching: Watch, model: nn.Module, ids: Tensor) -> dict[str, float]:
    with watching, torch.no_grad():
        model(ids)
        return watching.read()


def test_what_is_read_everywhere_is_exact_and_what_is_sampled_is_within_its_error(model: Any, ids: Tensor) -> None:
    host = host_for(model)
    kept: dict[str, dict[str, float]] = {}
    handles: list[Any] = []
    for layer, block in enumerate(model.model.layers):

        def keep(_: nn.Module, args: Any, output: Any, layer: int = layer) -> None:
            x = (output if isinstance(output, Tensor) else output[0]).detach().double()
            kurtosis = (x - x.mean()).pow(4).mean() / x.var(correction=0).square()
            kept[f"residual/layer.{layer}"] = {
                "rms": float(x.square().mean().sqrt()),
                "max_abs": float(x.abs().amax()),
                "kurtosis": float(kurtosis),
            }

        handles.append(block.register_forward_hook(keep))
    largest: dict[str, float] = {}
    unwatch = []
    for point in host.find_attentions():

        def see(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, layer: int | None = point.layer) -> None:
            hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
            for head in range(q.shape[1]):
                group = head // (q.shape[1] // k.shape[1])
                scores = scale * q[:, head].double() @ k[:, group].double().mT
                largest[f"attention/layer.{layer}.head.{head}/max_logit"] = float(
                    scores.masked_fill(hidden, -torch.inf).amax()
                )

        unwatch.append(point.watch(see))
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    for remove in unwatch:
        remove()
    standard = readings(watch(host, probes.standard), model, ids)
    cheap = readings(watch(host, probes.cheap), model, ids)
    whole = readings(watch(host, probes.named("entropy", "log_partition"), exact=True), model, ids)
    for place, statistics in kept.items():
        for name, value in statistics.items():
            assert standard[f"{place}/{name}"] == pytest.approx(value, rel=1e-5), f"{place}/{name}"
            if name != "kurtosis":
                assert cheap[f"{place}/{name}"] == pytest.approx(value, rel=1e-5), f"{place}/{name}"
    assert len(largest) == 270
    for key, value in largest.items():
        assert standard[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    sampled = [key for key in whole if key.endswith(("/entropy", "/log_partition"))]
    assert len(sampled) == 271
    within = sum(abs(standard[key] - whole[key]) <= 2 * standard[f"{key}_se"] for key in sampled)
    print(f"{within} of {len(sampled)} sampled readings within two standard errors")
    assert within / len(sampled) >= 0.93


def test_the_same_tokens_read_the_same_alone_and_padded(model: Any, ids: Tensor) -> None:
    few = ids[:2, :8]
    padded = torch.cat((few.new_zeros(2, 56), few), 1)
    mask = (torch.arange(64) >= 56).long().expand(2, 64)
    rows: list[dict[str, float]] = []
    for tokens, attended in ((few, torch.ones_like(few)), (padded, mask)):
        with watch(host_for(model), probes.cheap) as watching, torch.no_grad():
            model(tokens, attention_mask=attended, position_ids=(attended.cumsum(1) - 1).clamp(min=0))
            rows.append(watching.read())
    for layer in range(30):
        key = f"residual/layer.{layer}/rms"
        assert rows[1][key] == pytest.approx(rows[0][key], rel=1e-3)


def test_fused_readings_are_those_of_eager_operations(model: Any, ids: Tensor) -> None:
    host = host_for(model)
    eager = readings(watch(host, probes.standard, exact=True), model, ids)
    fused = readings(watch(host, probes.standard, exact=True, fused=True), model, ids)
    assert fused.keys() == eager.keys()
    for key, number in eager.items():
        assert fused[key] == pytest.approx(number, rel=1e-5, abs=1e-6), key
