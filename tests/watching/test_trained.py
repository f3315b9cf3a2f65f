"""Readings of models as training leaves them: attention sinks at the first token, padding, and outliers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab import host_for, probes, watch
from trimtab.host import Host, Point
from trimtab.testing.families import hugging_face

LENGTH = 96
SINK = 40.0


def planted(model_type: str) -> Any:
    """A small model whose first token is an attention sink with a residual stream of its own size."""
    torch.manual_seed(0)
    model: Any = hugging_face(model_type, max_position_embeddings=LENGTH)
    model.eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
                p.mul_(4)
        embedding = model.get_input_embeddings().weight
        embedding.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
        embedding[0] = SINK * torch.sign(embedding[0])  # token 0 stands first in every sequence, and nowhere else
        embedding[0, 3] *= 5
    return model


def tokens(seed: int = 0, batch: int = 3) -> Tensor:
    ids = torch.randint(1, 64, (batch, LENGTH), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    return ids


class Outputs:
    """Copies of what passes the points of a host, in double precision."""

    def __init__(self, host: Host) -> None:
        self.kept: dict[str, list[Tensor]] = {}
        for point in host.find_points():
            name = f"{point.what}/{'model' if point.layer is None else f'layer.{point.layer}'}"
            self._hook(point, name)

    def _hook(self, point: Point, name: str) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._keep(name, args[0] if args else next(x for x in kwargs.values() if isinstance(x, Tensor)))

        def after(_: nn.Module, args: Any, output: Any) -> None:
            self._keep(name, output if isinstance(output, Tensor) else output[0])

        if point.side == "input":
            point.module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            point.module.register_forward_hook(after)

    def _keep(self, name: str, x: Tensor) -> None:
        if x.is_floating_point():
            self.kept.setdefault(name, []).append(x.detach().double().clone())


@pytest.mark.parametrize("model_type", ["gpt2", "qwen3"])
@pytest.mark.parametrize("preset", [probes.cheap, probes.standard], ids=lambda preset: preset.name)
@pytest.mark.parametrize("fused", [False, True])
def test_norms_maxima_and_kurtosis_are_those_of_every_position(model_type: str, preset: Any, fused: bool) -> None:
    pytest.importorskip("transformers")
    model = planted(model_type)
    outputs = Outputs(host_for(model))
    watching = watch(host_for(model), preset, fused=fused)
    with torch.no_grad():
        model(tokens())
    row = watching.read()
    for name, parts in outputs.kept.items():
        x = torch.cat([part.flatten() for part in parts])
        centred = x - x.mean()
        expected = {"rms": x.square().mean().sqrt(), "max_abs": x.abs().amax(), "mean": x.mean()}
        if preset is probes.standard:
            expected["kurtosis"] = centred.pow(4).mean() / centred.square().mean() ** 2
        for statistic, value in expected.items():
            bound = 1e-6 * float(expected["rms"])
            assert row[f"{name}/{statistic}"] == pytest.approx(float(value), rel=1e-5, abs=bound), (name, statistic)
    first = outputs.kept["residual/layer.0"][0][:, 0]
    assert float(first.square().mean().sqrt()) > 10 * row["residual/layer.0/rms"] / math.sqrt(LENGTH)  # a sink indeed


@pytest.mark.parametrize("model_type", ["gpt2", "qwen3"])
def test_max_logit_is_that_of_every_position_and_a_sampled_maximum_is_at_most_that(model_type: str) -> None:
    pytest.importorskip("transformers")
    model = planted(model_type)
    both = probes.named("max_logit", "sampled_max")
    sampled, whole = (watch(host_for(model), both, exact=exact) for exact in (False, True))
    with torch.no_grad():
        model(tokens())
    few, all_of_them = sampled.read(), whole.read()
    maxima = [key for key in few if key.endswith("/max_logit")]
    assert len(maxima) == 2 * 4
    lower = 0
    for key in maxima:
        other = key.replace("max_logit", "sampled_max")
        assert few[key] == all_of_them[key] == all_of_them[other]
        assert few[other] <= few[key]
        lower += few[other] < few[key]
    assert lower > 0


@pytest.mark.parametrize("model_type", ["gpt2", "qwen3"])
def test_sampled_readings_are_within_two_standard_errors_in_most_cases(model_type: str) -> None:
    pytest.importorskip("transformers")
    model = planted(model_type)
    few = replace(probes.named("entropy", "log_partition"), query_rows=12, logit_rows=36)
    watches = [watch(host_for(model), few, exact=exact) for exact in (False, True)]
    readings = within = 0
    for seed in range(25):
        with torch.no_grad():
            model(tokens(seed))
        found, truth = (each.read() for each in watches)
        for key in truth:
            if key.endswith(("/entropy", "/log_partition")):
                assert truth[f"{key}_se"] == 0
                readings += 1
                within += abs(found[key] - truth[key]) <= 2 * found[f"{key}_se"]
    assert readings == 25 * 9
    assert within / readings >= 0.93


@pytest.mark.parametrize("model_type", ["gpt2", "qwen3"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_data(model_type: str, side: str) -> None:
    """A sequence reads the same alone and padded to eight times its length."""
    pytest.importorskip("transformers")
    model = planted(model_type).double()
    ids = tokens()[:2, :8]
    padding = torch.full((2, 56), 7)
    attended = torch.ones_like(ids)
    nothing = torch.zeros_like(padding)
    parts = ((padding, ids), (nothing, attended)) if side == "left" else ((ids, padding), (attended, nothing))
    long, mask = (torch.cat(part, 1) for part in parts)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    rows: list[dict[str, float]] = []
    for given in ({"input_ids": ids, "attention_mask": attended}, _padded(long, mask, positions)):
        with watch(host_for(model), probes.full, exact=True) as watching:
            model(**given)
            rows.append(watching.read())
    alone, padded = rows
    assert (alone["padding/model/known"], alone["padding/model/share"]) == (1, 0)
    assert (padded["padding/model/known"], padded["padding/model/share"]) == (1, 56 / 64)
    compared = [key for key in alone if not key.startswith("padding")]
    assert set(alone) == set(padded)
    assert len(compared) > 100
    for key in compared:
        assert padded[key] == pytest.approx(alone[key], rel=1e-5, abs=1e-7, nan_ok=True), key


def _padded(ids: Tensor, mask: Tensor, positions: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def test_without_a_mask_the_row_says_that_padding_is_not_known() -> None:
    pytest.importorskip("transformers")
    model = planted("gpt2")
    with watch(host_for(model), probes.cheap) as watching:
        model(tokens())
        row = watching.read()
    assert row["padding/model/known"] == 0
    assert "padding/model/share" not in row


@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_of_torchs_encoder_is_left_out_whatever_comes_first(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    x = torch.randn(5, 5, 16, dtype=torch.float64)  # as many sequences as positions: shapes do not tell them apart
    hidden = torch.zeros(5, 5, dtype=torch.bool)
    hidden[:, 3:] = True
    seen: list[Tensor] = []
    model.layers[0].linear1.register_forward_hook(lambda _, args, output: seen.append(output.detach()))
    with watch(host_for(model), probes.cheap) as watching:
        model(x if batch_first else x.transpose(0, 1), src_key_padding_mask=hidden)
        row = watching.read()
    kept = (seen[0] if batch_first else seen[0].transpose(0, 1))[:, :3]
    assert row["fc1_output/layer.0/rms"] == pytest.approx(float(kept.square().mean().sqrt()), rel=1e-9)
    assert row["padding/model/share"] == pytest.approx(2 / 5)


SUMMARY_KINDS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: planted("gpt2"),
    "qwen3": lambda: planted("qwen3"),
}


@pytest.mark.parametrize("kind", SUMMARY_KINDS)
def test_a_summary_is_merged_from_the_numbers_of_heads_and_layers(kind: str) -> None:
    pytest.importorskip("transformers")
    model = SUMMARY_KINDS[kind]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    whole = replace(probes.summary, summary=None)
    watches = [watch(host_for(model), preset, optimizer=optimizer) for preset in (probes.summary, whole)]
    model(tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    few, many = (each.last for each in watches)
    assert len(few) < 40
    for layer in range(2):
        of_heads = [many[f"attention/layer.{layer}.head.{head}/sampled_max"] for head in range(4)]
        assert few[f"attention/layer.{layer}/sampled_max"] == max(of_heads)
        of_heads = [many[f"attention/layer.{layer}.head.{head}/entropy"] for head in range(4)]
        assert few[f"attention/layer.{layer}/entropy"] == min(of_heads)
        assert few[f"residual/layer.{layer}/rms"] == pytest.approx(many[f"residual/layer.{layer}/rms"])
    assert few["residual/model/max_abs"] == max(many[f"residual/layer.{layer}/max_abs"] for layer in range(2))
    assert few["fc2_weight/model/update_ratio"] == max(
        many[f"fc2_weight/layer.{layer}/update_ratio"] for layer in range(2)
    )
    assert few["all_grad/model/l2_norm"] == many["all_grad/model/l2_norm"]
    for each in watches:
        each.remove()


def test_a_summary_of_twelve_layers_has_at_most_sixty_keys() -> None:
    from trimtab import GPT, GPTConfig

    model = GPT(GPTConfig(vocab_size=32, context=16, num_layers=12, num_heads=4, width=32, tied=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(host_for(model), probes.summary, optimizer=optimizer) as watching:
        model(torch.arange(16)[None]).logsumexp(-1).mean().backward()
        optimizer.step()
    assert 45 <= len(watching.last) <= 60
