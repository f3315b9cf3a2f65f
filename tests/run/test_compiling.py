"""``training.compile = "auto"``: the estimate, and where it is settled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trimtab import GPTConfig
from trimtab.config import ConfigError
from trimtab.run.compiling import compiling
from trimtab.run.identity import run_id
from trimtab.run.reading import read_protocol
from trimtab.run.spec import RunSpec, TrainingConfig, TrainingProtocol
from trimtab.study.plan import plan
from trimtab.study.study import Study

SMALL = GPTConfig(width=32, num_layers=2, num_heads=2, context=32)
LARGE = GPTConfig(width=512, num_layers=8, num_heads=8, context=256)


def protocol(model: GPTConfig, compile: Any) -> TrainingProtocol:
    return TrainingProtocol(model=model, training=TrainingConfig(steps=1000, compile=compile))


@pytest.mark.parametrize(("model", "chosen"), [(SMALL, False), (LARGE, True)])
def test_auto_compiles_a_run_that_alone_saves_more_than_its_graphs_cost(model: GPTConfig, chosen: bool) -> None:
    assert protocol(model, "auto").training.compile is chosen


@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_a_run_with_auto_is_the_run_with_the_answer(model: GPTConfig) -> None:
    auto = protocol(model, "auto")
    settled = protocol(model, auto.training.compile)
    other = protocol(model, not auto.training.compile)
    ids = [run_id(RunSpec(protocol=one), "data") for one in (auto, settled, other)]
    assert ids[0] == ids[1] != ids[2]
    assert RunSpec(protocol=auto).table()["training"]["compile"] is auto.training.compile


def test_a_protocol_that_is_changed_afterwards_keeps_its_answer() -> None:
    """The answer is settled when a protocol is made; a file is read with its shape in place."""
    assert replace(protocol(SMALL, "auto"), model=LARGE).training.compile is False
    raw = {"model": {"width": 512, "num_layers": 8, "num_heads": 8, "context": 256}}
    table = raw | {"training": {"steps": 1000, "compile": "auto"}}
    assert read_protocol(table, "test").training.compile is True


def test_each_size_of_a_study_is_judged_by_its_own_shape() -> None:
    study = Study(
        kind="max_lr_by_size",
        arms=["baseline"],
        learning_rates={"low": "2^-6", "high": "2^1"},
        training={"steps": 1000, "compile": "auto"},
        sizes={
            "small": {"model": {"width": 32, "num_layers": 2, "num_heads": 2}},
            "large": {"model": {"width": 512, "num_layers": 8, "num_heads": 8, "context": 256}},
        },
    )
    assert {
        place.size: study.spec.arms[name].protocol.training.compile for name, place in study.spec.places.items()
    } == {
        "small": False,
        "large": True,
    }


@pytest.mark.parametrize("value", ["yes", 1, 0, None, "Auto"])
def test_another_value_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"training\.compile: expected one of true, false, 'auto'"):
        read_protocol({"training": {"compile": value}}, "test")


def test_the_time_of_a_run_grows_with_its_work() -> None:
    base = compiling(LARGE, 1000, 32, 1, 1, "cpu")
    assert compiling(LARGE, 2000, 32, 1, 1, "cpu").run == pytest.approx(2 * base.run)
    assert compiling(LARGE, 1000, 64, 1, 1, "cpu").run == pytest.approx(2 * base.run)
    assert compiling(LARGE, 1000, 32, 1, 2, "cpu").run == pytest.approx(base.run / 2)
    assert compiling(LARGE, 1000, 32, 4, 1, "cpu").run == base.run
    # 8 blocks of 12 x 512^2 weights and scores over 256 tokens, the head; 6 FLOPs per weight and token, 3e10 a second.
    flops = 6 * (8 * (12 * 512**2 + 2 * 256 * 512) + 256 * 512) * 32 * 256
    assert base.run == pytest.approx(1000 * flops / 3e10)


def test_a_small_model_on_a_gpu_takes_the_time_of_its_launches() -> None:
    one = compiling(SMALL, 1000, 32, 1, 1, "cuda")
    assert one.run == pytest.approx(1000 * (2 * 75 + 100) * 8e-6)
    assert compiling(SMALL, 1000, 32, 4, 1, "cuda").run == pytest.approx(4 * one.run)


def test_the_plan_says_whether_compilation_pays() -> None:
    tables = {"learning_rates": {"low": "2^-6", "high": "2^1"}, "model": {"width": 32, "num_layers": 2, "num_heads": 2}}
    spec = Study(
        arms=["baseline"], training={"steps": 20, "compile": "auto"}, schedule={"warmup_steps": 2}, **tables
    ).spec
    line = next(line for line in plan(spec, 1).splitlines() if line.startswith("compile:"))
    assert line.startswith("compile: 0 of 1 arms; it saves about ")
    assert "does not pay" in line
