"""A row that two ranks read together is the row that one process reads on the whole batch.

This file is also the program of each rank: ``python test_distributed.py RANK FOLDER``.

The loss of a rank is the mean over its half of the batch. Parameter gradients are averaged over the ranks, so they are
those of the mean over the whole batch. Gradients of activations are not averaged: on each rank they belong to the mean
over the half, and so are twice those of one process.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.probe import GradientNoiseProbe, Preset
from trimtab.probes import PRESETS
from trimtab.watching import watch

WORLD, BATCH, STEPS, CLIP = 2, 6, 3, 0.25
CONFIG = GPTConfig(
    vocab_size=37, context=12, num_layers=2, num_heads=2, width=18, tied=False, bias=False, init_std=0.2
)  # fmt: skip
SETUPS = ["ddp-standard", "ddp-full", "fsdp-standard", "fsdp-full", "fsdp-full_without_noise", "ddp-clipped"]
SETUPS += ["ddp-edited", "fsdp-edited"]
SCALED = {"rms", "l2_norm", "max_abs", "mean"}  # statistics of degree 1; kurtosis and counts have degree 0
TOLERANCE = 1e-6  # in float64; the norms of weights and gradients are taken in float64 then as well


class Rows:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.rows: list[dict[str, float]] = []

    def open(self, run: str) -> None:
        self.calls.append(f"open {run}")

    def log(self, step: int, row: dict[str, float]) -> None:
        self.calls.append(f"log {step}")
        self.rows.append(dict(row))

    def close(self, status: str) -> None:
        self.calls.append(f"close {status}")


def preset_of(name: str) -> Preset:
    if name in ("full_without_noise", "edited"):
        full = PRESETS["full"]
        return replace(full, probes=tuple(p for p in full.probes if not isinstance(p, GradientNoiseProbe)))
    return PRESETS["standard" if name == "clipped" else name]


def make_model(setup: str = "") -> GPT:
    torch.manual_seed(3)
    model = GPT(CONFIG).double()
    if setup.endswith("edited"):
        methods.qk_norm_cap.install(host_for(model))  # before it is wrapped or sharded
    return model


def batches() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, CONFIG.vocab_size, (STEPS, BATCH, CONFIG.context), generator=generator)


def train(
    called: nn.Module, inner: GPT, parts: list[list[Tensor]], setup: str, *, group: Literal["world"] | None = "world"
) -> dict[str, Any]:
    """Some steps, each of the mean over its micro-batches; what the sink was told, and what was warned of."""
    sink, optimizer = Rows(), torch.optim.AdamW(called.parameters(), lr=1e-2, foreach=False)
    clipped = setup.endswith("clipped")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = watch(
            host_for(inner),
            preset_of(setup.partition("-")[2]),
            optimizer=optimizer,
            sinks=[sink],
            every=1,
            exact=True,
            group=group,
        )
        for micro_batches in parts:
            for tokens in micro_batches:
                logits = called(tokens[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
                (loss / len(micro_batches)).backward()
            if clipped:
                watched.see_gradients()
                nn.utils.clip_grad_norm_(called.parameters(), CLIP, foreach=False)
            optimizer.step()
            optimizer.zero_grad()
        watched.remove()
    told = [str(one.message) for one in caught if "trimtab" in str(one.message)]
    return {"rows": sink.rows, "calls": sink.calls, "warnings": told, "last": watched.last}


def rank_main(rank: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    mine = [[step.chunk(WORLD)[rank]] for step in batches()]
    found: dict[str, Any] = {}
    for setup in SETUPS:
        inner = make_model(setup)
        if setup.startswith("ddp"):
            called: nn.Module = DistributedDataParallel(inner)
        else:
            for block in inner.blocks:
                fully_shard(block, mesh=mesh)
            called = fully_shard(inner, mesh=mesh)
        found[setup] = train(called, inner, mine, setup)
    inner = make_model()
    found["alone"] = train(inner, inner, mine, "none-standard", group=None)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two ranks found, by setup."""
    folder = tmp_path_factory.mktemp("ranks")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    logs = [(folder / f"{rank}.log").open("w") for rank in range(WORLD)]
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], stdout=log, stderr=log, env=env)
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
        for log in logs:
            log.close()
    assert codes == [0] * WORLD, "\n".join((folder / f"{rank}.log").read_text()[-3000:] for rank in range(WORLD))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def reference(setup: str, micro_batches: int = 1) -> list[dict[str, float]]:
    """Rows of one process on the whole batch."""
    model = make_model(setup)
    parts = [list(step.chunk(micro_batches)) for step in batches()]
    return train(model, model, parts, setup, group=None)["rows"]


def is_activation_gradient(key: str) -> bool:
    what = key.split("/")[0]
    return what.endswith(("input_grad", "output_grad", "residual_grad"))


def assert_same_rows(found: list[dict[str, float]], expected: list[dict[str, float]], scale: float) -> None:
    """Equal for the keys of both; gradients of activations are ``scale`` times those of one process."""
    assert len(found) == len(expected) == STEPS
    wrong: list[str] = []
    for row, other in zip(found, expected, strict=True):
        for key in sorted(row.keys() & other.keys()):
            factor = scale if is_activation_gradient(key) and key.split("/")[-1] in SCALED else 1.0
            if not math.isclose(row[key], factor * other[key], rel_tol=TOLERANCE, abs_tol=1e-9):
                wrong.append(f"step {row['step']:.0f} {key}: {row[key]!r}, expected {factor * other[key]!r}")
    assert not wrong, f"{len(wrong)} differ: " + "\n".join(wrong[:20])


@pytest.mark.parametrize("setup", [setup for setup in SETUPS if "clipped" not in setup])
def test_the_row_of_two_ranks_is_the_row_of_one_process(ranks: list[dict[str, Any]], setup: str) -> None:
    expected = reference(setup)
    assert_same_rows(ranks[0][setup]["rows"], expected, scale=WORLD)
    noise = {key for key in ranks[0][setup]["rows"][0] if key.endswith("variance") and "_grad/" in key}
    assert ranks[0][setup]["rows"][0].keys() - noise == expected[0].keys()


@pytest.mark.parametrize("setup", ["ddp-standard", "fsdp-standard"])
def test_the_keys_that_are_compared_are_of_every_kind(ranks: list[dict[str, Any]], setup: str) -> None:
    keys = ranks[0][setup]["rows"][0].keys()
    assert {
        "qkv_output/layer.0/rms",
        "fc2_input/layer.1/kurtosis",
        "qkv_output_grad/layer.1/rms",
        "logits/model/log_partition",
        "attention/layer.1.head.1/max_attention_logit",
        "qkv_weight/layer.0/l2_norm",
        "qkv_weight_grad/layer.0/l2_norm",
        "fc1_weight_update/layer.1/l2_norm",
        "all_grad/model/l2_norm",
        "all_update/model/l2_norm",
    } <= {key.replace("max_logit", "max_attention_logit") for key in keys}


def test_gradient_variance_over_ranks_is_that_over_micro_batches(ranks: list[dict[str, Any]]) -> None:
    expected, rows = reference("ddp-full", micro_batches=WORLD), ranks[0]["ddp-full"]["rows"]
    keys = [key for key in expected[0] if key.endswith("/variance") and "_grad/" in key]
    layers = [f"all_grad/layer.{layer}/variance" for layer in range(CONFIG.num_layers)]
    assert sorted(keys) == [*layers, "all_grad/model/variance", "embedding_weight_grad/model/variance"]
    for row, other in zip(rows, expected, strict=True):
        for key in keys:
            assert row[key] > 0
            assert row[key] == pytest.approx(other[key], rel=TOLERANCE)


def test_several_micro_batches_make_the_same_row_as_one() -> None:
    # Each micro-batch's loss is divided by their number, so activation gradients are those of the whole mean.
    assert_same_rows(reference("none-full", micro_batches=3), reference("none-full"), scale=1.0)


def test_gradients_seen_before_clipping_are_merged_unclipped(ranks: list[dict[str, Any]]) -> None:
    rows = ranks[0]["ddp-clipped"]["rows"]
    assert_same_rows(rows, reference("none-clipped"), scale=WORLD)
    assert all(row["all_grad/model/l2_norm"] > CLIP for row in rows)


@pytest.mark.parametrize("setup", SETUPS)
def test_only_rank_0_writes_and_in_order(ranks: list[dict[str, Any]], setup: str) -> None:
    logged = [f"log {step}" for step in range(1, STEPS + 1)]
    assert ranks[0][setup]["calls"] == ["open run", *logged, "close finished"]
    assert ranks[1][setup]["calls"] == []


@pytest.mark.parametrize("setup", SETUPS)
def test_every_rank_knows_the_merged_row(ranks: list[dict[str, Any]], setup: str) -> None:
    assert ranks[1][setup]["last"].keys() == ranks[0][setup]["last"].keys()
    for key, value in ranks[0][setup]["last"].items():
        assert ranks[1][setup]["last"][key] == pytest.approx(value, rel=1e-12, abs=1e-15), key


@pytest.mark.parametrize("rank", range(WORLD))
def test_sharding_drops_the_gradient_variance_with_a_warning_on_every_rank(
    ranks: list[dict[str, Any]], rank: int
) -> None:
    told = ranks[rank]["fsdp-full"]["warnings"]
    assert len(told) == 1, told
    assert "gradient variance cannot be read under fully_shard" in told[0]
    assert not [key for key in ranks[0]["fsdp-full"]["rows"][0] if key.endswith("/variance") and "_grad/" in key]


@pytest.mark.parametrize("setup", [setup for setup in SETUPS if setup != "fsdp-full"])
def test_nothing_else_warns(ranks: list[dict[str, Any]], setup: str) -> None:
    assert [ranks[rank][setup]["warnings"] for rank in range(WORLD)] == [[], []]


def test_full_and_full_without_noise_read_the_same_under_sharding(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["fsdp-full"]["rows"][0].keys() == ranks[0]["fsdp-full_without_noise"]["rows"][0].keys()


def test_without_a_group_every_rank_reads_its_own_half_and_writes(ranks: list[dict[str, Any]]) -> None:
    for rank in range(WORLD):
        model = make_model()
        mine = [[step.chunk(WORLD)[rank]] for step in batches()]
        expected = train(model, model, mine, "none-standard", group=None)["rows"]
        assert_same_rows(ranks[rank]["alone"]["rows"], expected, scale=1.0)
        assert ranks[rank]["alone"]["calls"][0] == "open run"


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), Path(sys.argv[2]))
