"""What a run keeps beside its rows: predictions, every token's spread, what readings cost; and how it is asked for."""

from __future__ import annotations

import json
import math
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from torch import nn

from trimtab import cli
from trimtab.config import ConfigError, dump_toml
from trimtab.data.batches import held_out_batch, training_batch
from trimtab.run.build import build
from trimtab.run.check import check_run
from trimtab.run.execute import execute
from trimtab.run.folder import IntegrityError, Outcome, load_arrays, load_outcome, load_readings, load_steps, load_times
from trimtab.run.reading import read_run
from trimtab.run.spec import ProbesConfig, RunSpec, UserCode
from trimtab.run.trained import load_trained

Raw = dict[str, Any]
Tables = Callable[..., Raw]
ALL = {"named": ["tev", "variance", "training_map"], "every": 4, "tokens": True}


def tables_of(tiny_tables: Tables, **changes: Any) -> Raw:
    raw = tiny_tables(training={"accumulate": 2})
    sections = {key: raw[key] for key in ("model", "training", "schedule", "evaluation", "data")}
    return sections | {"learning_rate": 0.01, "method": "qk_norm"} | changes


def spec_of(tiny_tables: Tables, **changes: Any) -> RunSpec:
    return read_run(tables_of(tiny_tables, **changes), "run.toml")


@pytest.fixture(scope="module")
def kept(tiny_tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, Outcome, Path]:
    """A run that keeps all there is, with its weights; copy nothing into its folder."""
    spec, runs = spec_of(tiny_tables, probes=ALL), tmp_path_factory.mktemp("kept")
    outcome = execute(spec, runs, keep_weights=True)
    return spec, outcome, runs / outcome.run_id


Kept = tuple[RunSpec, Outcome, Path]


# Asking.


@pytest.mark.parametrize("slug", ["tve", "", "TEV", "all"])
def test_an_unknown_slug_is_one_line_with_the_key_and_the_known_slugs(tiny_tables: Tables, slug: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec_of(tiny_tables, probes={"named": ["tev", slug]})
    text = str(caught.value)
    assert "\n" not in text
    for word in ("run.toml", "probes", f"'{slug}'", "tev", "variance", "training_map"):
        assert word in text, text


@pytest.mark.parametrize("named", ["tev", 3, [3], [["tev"]], {"tev": True}])
def test_names_of_another_type_are_refused(tiny_tables: Tables, named: Any) -> None:
    with pytest.raises(ConfigError, match=r"probes\.named") as caught:
        spec_of(tiny_tables, probes={"named": named})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "probes", [{"tokens": True}, {"preset": "none", "tokens": True}, {"named": [], "tokens": True}]
)
def test_tokens_without_a_reading_are_refused(tiny_tables: Tables, probes: Raw) -> None:
    with pytest.raises(ConfigError, match=r"probes.*tokens") as caught:
        spec_of(tiny_tables, probes={**probes, "tokens": True})
    assert "\n" not in str(caught.value)


def test_a_bad_name_in_a_file_is_an_error_of_the_command_line_and_nothing_is_written(
    tiny_tables: Tables, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(tomli_w.dumps(tables_of(tiny_tables, probes={"named": ["tve"]})), encoding="utf-8")
    assert cli.main(["run", str(file), "--out", str(tmp_path / "runs")]) == 2
    assert "tve" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_probes_read_from_a_file_are_read_again_from_what_is_written_of_them(tiny_tables: Tables) -> None:
    spec = spec_of(tiny_tables, probes=ALL)
    again = read_run(tomllib.loads(dump_toml(spec.table())), "again")
    assert again.protocol.probes == spec.protocol.probes == ProbesConfig(**{**ALL, "named": tuple(ALL["named"])})


def unknown(config: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(config.vocab_size, 8), nn.Linear(8, config.vocab_size))


def test_tokens_of_a_model_that_no_host_knows_are_refused_before_anything_is_written(tiny_tables: Tables) -> None:
    asked = spec_of(tiny_tables, probes={"named": ["tev"], "tokens": True}, method="baseline")
    spec = replace(asked, code=UserCode(model=unknown))
    with pytest.raises(ConfigError, match=r"^run\.toml: probes\.tokens: .*Sequential") as caught:
        check_run(spec, spec.protocol.data.load(), "run.toml")
    assert "\n" not in str(caught.value)


def test_the_refusal_of_tokens_of_an_unknown_model_names_the_key(tiny_tables: Tables) -> None:
    asked = spec_of(tiny_tables, probes={"named": ["tev"], "tokens": True}, method="baseline")
    spec = replace(asked, code=UserCode(model=unknown))
    with pytest.raises(ConfigError, match=r"probes\.tokens"):
        check_run(spec, spec.protocol.data.load(), "run.toml")


def test_a_model_that_no_host_knows_can_be_read_by_names_without_tokens(tiny_tables: Tables, tmp_path: Path) -> None:
    asked = spec_of(tiny_tables, probes={**ALL, "tokens": False}, method="baseline")
    spec = replace(asked, code=UserCode(model=unknown))
    check_run(spec, spec.protocol.data.load(), "run.toml")
    run = tmp_path / execute(spec, tmp_path).run_id
    first, *_ = load_readings(run)
    assert first["embedding_weight/0/tev_mean"] > 0
    assert first["all_weights/model/spectral_norm"] > 0
    # Every window of the circle has the same pairs of neighbours, and this model sees no more than those.
    assert first["all_grad/layer.1/variance"] == pytest.approx(0.0, abs=1e-6)
    assert load_arrays(run, "tokens.npz") == {}


# What is kept.


def test_the_run_is_the_one_without_probes(kept: Kept, tiny_tables: Tables, tmp_path: Path) -> None:
    _, outcome, run = kept
    plain = execute(spec_of(tiny_tables), tmp_path)
    assert plain.run_id != outcome.run_id
    assert json.dumps(load_steps(tmp_path / plain.run_id)) == json.dumps(load_steps(run))
    facts = [replace(one, run_id="", seconds=0.0, bytes_per_token=0.0) for one in (plain, outcome)]
    assert facts[0] == facts[1]
    both = [load_arrays(folder, "predictions.npz")["predictions"] for folder in (run, tmp_path / plain.run_id)]
    assert np.array_equal(*both)
    names = {path.name for path in (tmp_path / plain.run_id).iterdir()}
    assert "predictions.npz" in names
    assert not names & {"tokens.npz", "times.json", "probes.jsonl"}


def test_predictions_are_the_largest_logits_of_the_trained_model(kept: Kept) -> None:
    _, _, run = kept
    model, spec = load_trained(run)
    held_out = held_out_batch(
        spec.protocol.data.load().held_out,
        num_sequences=spec.protocol.evaluation.num_sequences,
        context=spec.protocol.model.context,
    )
    predictions = load_arrays(run, "predictions.npz")["predictions"]
    assert predictions.shape == (len(held_out), held_out.shape[1] - 1)
    assert predictions.dtype == np.uint32
    with torch.no_grad():
        for sequence, mine in zip(held_out, predictions, strict=True):
            for row, token in zip(model(sequence[None, :-1])[0].double().tolist(), mine.tolist(), strict=True):
                best = max(range(len(row)), key=lambda at: row[at])
                assert token == best or row[best] - row[token] < 1e-5  # of a tie either
    assert len(np.unique(predictions)) > 1


def test_tokens_are_kept_before_training_and_at_each_reading(kept: Kept) -> None:
    spec, _, run = kept
    tokens, readings = load_arrays(run, "tokens.npz"), load_readings(run)
    assert set(tokens) == {"steps", "deviation", "rms", "count"}
    assert tokens["steps"].tolist() == [0, *(row["step"] for row in readings)] == [0, 1, 4, 8, 12, 16, 20]
    assert tokens["deviation"].shape == tokens["rms"].shape == (7, 8)
    train = spec.protocol.data.load().train
    counted = [0] * 8
    for token in train.tolist():
        counted[token] += 1
    assert tokens["count"].tolist() == counted == np.bincount(train, minlength=8).tolist()
    for row, mine in zip(readings, tokens["deviation"][1:], strict=True):
        assert mine.mean() == pytest.approx(row["embedding_weight/model/tev_mean"], rel=1e-6)


@pytest.mark.parametrize("trained", [False, True])
def test_the_first_and_the_last_row_of_tokens_are_of_the_first_and_the_last_weights(kept: Kept, trained: bool) -> None:
    spec, _, run = kept
    model: Any = load_trained(run)[0] if trained else build(spec, torch.device("cpu"))
    tokens = load_arrays(run, "tokens.npz")
    row = -1 if trained else 0
    for token, vector in enumerate(model.token_embedding.weight.detach().double().tolist()):
        mean = math.fsum(vector) / len(vector)
        deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in vector) / len(vector))
        rms = math.sqrt(math.fsum(v * v for v in vector) / len(vector))
        assert tokens["deviation"][row, token] == pytest.approx(deviation, rel=1e-5)
        assert tokens["rms"][row, token] == pytest.approx(rms, rel=1e-5)


def test_times_tell_a_step_and_each_kind_of_reading(kept: Kept) -> None:
    times = load_times(kept[2])
    assert {"step", "tables", "noise", "model"} <= set(times)
    assert all(times[what] > 0 for what in ("step", "tables", "noise", "model"))
    assert all(0 <= seconds < 10 for seconds in times.values())


@pytest.mark.parametrize("name", ["predictions.npz", "tokens.npz", "times.json", "probes.jsonl"])
@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_a_damaged_recording_is_noticed(kept: Kept, tmp_path: Path, name: str, harm: str) -> None:
    run = Path(shutil.copytree(kept[2], tmp_path / kept[2].name))
    assert repr(load_outcome(run)) == repr(kept[1])  # which holds a nan
    content = bytearray((run / name).read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "gone":
        (run / name).unlink()
    else:
        (run / name).write_bytes(content if harm == "changed" else content[:-1])
    with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
        load_outcome(run)


@pytest.mark.parametrize("rate", [1e4, 1e30])
def test_a_run_that_breaks_still_keeps_what_it_has(tiny_tables: Tables, tmp_path: Path, rate: float) -> None:
    """Every file is whole although the run ended early or its weights are not finite."""
    outcome = execute(spec_of(tiny_tables, probes=ALL, learning_rate=rate), tmp_path)
    run = tmp_path / outcome.run_id
    assert load_outcome(run) is not None
    assert load_arrays(run, "predictions.npz")["predictions"].shape[1] == 8
    steps = load_arrays(run, "tokens.npz")["steps"].tolist()
    assert steps == [0, *(row["step"] for row in load_readings(run))]
    assert steps[-1] <= outcome.steps


def test_the_first_batch_is_that_of_the_data_seed(tiny_tables: Tables) -> None:
    """What the first training loss of a run is taken on: its micro-batches are seeded by data seed and step."""
    spec = spec_of(tiny_tables)
    data, training = spec.protocol.data.load(), spec.protocol.training
    size = {"batch_size": training.batch_size, "context": spec.protocol.model.context}
    first = training_batch(data.train, seed=0, step=1, **size)
    assert torch.equal(first, training_batch(data.train, seed=0, step=1, **size))
    assert not torch.equal(first, training_batch(data.train, seed=1, step=1, **size))
