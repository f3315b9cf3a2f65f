"""Probes inside a run: they change none of its numbers, are stored with it, and are checked with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.run.execute import execute
from trimtab.run.folder import IntegrityError, load_outcome, load_readings, load_steps
from trimtab.run.reading import read_run
from trimtab.run.spec import RunSpec, UserCode
from trimtab.testing.families import hugging_face


def spec_of(tables: dict[str, Any], **changes: Any) -> RunSpec:
    raw = {key: tables[key] for key in ("model", "training", "schedule", "evaluation", "data")}
    return read_run(raw | {"learning_rate": 0.01, "method": "qk_norm"} | changes, "test")


def test_a_run_with_probes_has_the_step_rows_of_one_without(tiny_tables: Any, tmp_path: Path) -> None:
    plain = spec_of(tiny_tables())
    watched = spec_of(tiny_tables(), probes={"preset": "full", "every": 5})
    first, second = execute(plain, tmp_path), execute(watched, tmp_path)
    assert first.run_id != second.run_id
    rows = [load_steps(tmp_path / outcome.run_id) for outcome in (first, second)]
    assert json.dumps(rows[0]) == json.dumps(rows[1])
    assert load_readings(tmp_path / first.run_id) == []
    readings = load_readings(tmp_path / second.run_id)
    assert [row["step"] for row in readings] == [1, 5, 10, 15, 20]
    # Read before the clipping that the protocol has in common: the norm that the loop reports.
    norms = {row["step"]: row["grad_norm"] for row in rows[1]}
    for row in readings:
        assert row["all_grad/model/l2_norm"] == pytest.approx(norms[row["step"]], rel=1e-5)


def test_changed_readings_are_noticed(tiny_tables: Any, tmp_path: Path) -> None:
    outcome = execute(spec_of(tiny_tables(), probes={"preset": "cheap"}), tmp_path)
    assert load_outcome(tmp_path / outcome.run_id) is not None
    file = tmp_path / outcome.run_id / "probes.jsonl"
    file.write_text(file.read_text().replace("1", "2", 1))
    with pytest.raises(IntegrityError, match=r"probes\.jsonl: SHA-256 differs"):
        load_outcome(tmp_path / outcome.run_id)


def test_a_negative_cadence_is_refused(tiny_tables: Any) -> None:
    with pytest.raises(Exception, match=r"probes: every must lie between 0 and .*, got -1$"):
        spec_of(tiny_tables(), probes={"every": -1})


def small_llama(config: Any) -> nn.Module:
    return hugging_face("llama", vocab_size=config.vocab_size)


def unknown(config: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(config.vocab_size, 8), nn.Linear(8, config.vocab_size))


@pytest.mark.parametrize("builder", [small_llama, unknown])
def test_models_of_others_run_with_probes(builder: Any, tiny_tables: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    method = "qk_norm" if builder is small_llama else "baseline"
    spec = replace(spec_of(tiny_tables(), probes={"preset": "standard"}, method=method), code=UserCode(model=builder))
    outcome = execute(spec, tmp_path)
    (first, *_) = load_readings(tmp_path / outcome.run_id)
    wanted = "attention/layer.1.head.3/entropy" if builder is small_llama else "output/1/l2_norm"
    assert first[wanted] > 0
    assert outcome.final_loss < outcome.initial_loss
