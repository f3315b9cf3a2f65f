"""Studies of seeds and of signals, from file to report; and runs that are taken over from other studies."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import signal
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tomli_w
import torch

from trimtab import Study, cli, load_study
from trimtab.cli.commands import study_tables
from trimtab.config import ConfigError, dump_toml
from trimtab.kinds.signals.analysis import TRACES
from trimtab.kinds.signals.traces import Trace, load_traces, read_trace, save_traces, token_groups
from trimtab.report import report_of, write_report
from trimtab.report.output import json_text
from trimtab.report.schema import schema
from trimtab.report.seed_sections import view_sections
from trimtab.run import execute as execution
from trimtab.run.build import build
from trimtab.run.execute import execute
from trimtab.run.files import IntegrityError
from trimtab.run.folder import Outcome, load_outcome, load_readings, load_steps
from trimtab.run.spec import UserCode
from trimtab.study.driver import run_study
from trimtab.study.executors.contract import Job, Progress, train_job
from trimtab.study.executors.inline import InlineExecutor
from trimtab.study.kind import Evidence, kind_of, read_any_study
from trimtab.study.seed_facts import NO_FACTS, SeedFacts, load_facts, read_facts, save_facts
from trimtab.study.seed_groups import FACTS, seed_groups
from trimtab.study.stored import cost_reader, load_stored
from trimtab.study.trial import Results, Trial
from trimtab.testing.simulated_study import evidence_on, run_id_of
from trimtab.testing.simulated_study import outcome_of as outcome_of_trial

Raw = dict[str, Any]
Tables = Callable[..., Raw]
SMALL = {"width": 16, "num_layers": 2}
BOTH = ("seeds", "signals")
CHANGES: dict[str, Raw] = {
    "seeds": {
        "seeds": {"learning_rate": "2^-6", "init": 3, "data": 2},
        "probes": {"named": ["tev", "training_map"], "every": 4},
        "training": {"steps": 24},
        "arms": {"baseline": {}},
    },
    "signals": {
        "learning_rates": {"low": "2^-7", "high": "2^2", "octaves_apart": 9},
        "signals": {"seeds": 2, "fractions": [0.25, 0.5]},
        "probes": {"named": ["tev", "variance"], "every": 3, "tokens": True},
        "training": {"steps": 24, "accumulate": 2},
        "arms": {"baseline": {}, "=cmd()": {"method": "qk_norm"}},
    },
}
both = pytest.mark.parametrize("kind", BOTH)


@pytest.fixture(scope="session")
def tables(tiny_tables: Tables) -> Tables:
    """The tables of a tiny study of either kind, with changes: ``tables("seeds", training={"steps": 30})``."""

    def make(kind: str, /, **changes: Any) -> Raw:
        raw = tiny_tables(kind=kind, model=SMALL)
        del raw["search"]
        del raw["learning_rates"]
        for key, value in (*CHANGES[kind].items(), *changes.items()):
            merged = isinstance(value, dict) and isinstance(raw.get(key), dict) and key not in ("arms", "sizes", "data")
            raw[key] = {**raw[key], **value} if merged else value
        return {key: value for key, value in raw.items() if value is not None}

    return make


def read(raw: Raw) -> Any:
    return read_any_study(raw, "study.toml")


def analysed(spec: Any, results: Results, names: Mapping[Trial, str], folder: Path) -> Any:
    """The findings from these outcomes and what the folder holds."""
    evidence = Evidence(
        results=results,
        run_ids=names,
        folder=folder,
        errors={},
        blocks=lambda name: {},
        cost=cost_reader(spec, {}),
    )
    return kind_of(spec).analyse(spec, evidence)


def strict(file: Path) -> Raw:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {file.name}")

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)


class Trained:
    """A task that notes what it trains."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, job: Job, progress: Progress) -> None:
        train_job(job, progress)
        self.names.append(job.name)


@pytest.fixture(scope="module")
def whole(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Both tiny studies carried out, each with its report."""
    done: dict[str, Any] = {}
    for kind in BOTH:
        done[kind] = Study.of(read(tables(kind))).run(tmp_path_factory.mktemp("whole") / kind, workers=0)
        write_report(done[kind])
    return done


# --- reading ----------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, Raw, tuple[str, ...]]] = {
    "one init seed": ("seeds", {"seeds": {"init": 1}}, ("seeds", "init", "at least 2")),
    "no data seed": ("seeds", {"seeds": {"data": 0}}, ("seeds", "data", "at least 2")),
    "no section of seeds": ("seeds", {"seeds": None}, ("seeds",)),
    "no rate": ("seeds", {"seeds": {"learning_rate": 0.0}}, ("seeds", "learning_rate", "positive")),
    "an endless rate": ("seeds", {"seeds": {"learning_rate": math.inf}}, ("seeds", "learning_rate")),
    "a rate misspelt": ("seeds", {"seeds": {"learning_rates": 0.1}}, ("seeds", "learning_rate")),
    "a sweep": ("seeds", {"learning_rates": {"low": 0.1, "high": 0.2}}, ("learning_rates",)),
    "too many pairs": ("seeds", {"seeds": {"init": 101, "data": 100}}, ("seeds", "10100")),
    "seeds that are no number": ("seeds", {"seeds": {"init": "many"}}, ("seeds.init", "many")),
    "one micro-batch": ("signals", {"training": {"accumulate": 1}}, ("training.accumulate", "at least 2")),
    "no probes": ("signals", {"probes": None}, ("probes", "tev and variance")),
    "nothing read": ("signals", {"probes": {"named": [], "tokens": True}}, ("probes", "tokens")),
    "one signal": ("signals", {"probes": {"named": ["tev"]}}, ("probes", "variance")),
    "a preset without variance": (
        "signals",
        {"probes": {"named": [], "preset": "standard"}},
        ("probes", "does not read variance"),
    ),
    "an unknown signal": ("signals", {"probes": {"named": ["tve"]}}, ("probes", "tve", "variance")),
    "no reading": ("signals", {"probes": {"every": 10_000}}, ("probes.every", "no reading")),
    "a fraction beyond the run": ("signals", {"signals": {"from_fraction": 1.5}}, ("signals", "from_fraction")),
    "more repeats than cells": (
        "seeds",
        {"seeds": {"init": 2, "data": 3, "repeats": 7}},
        ("seeds", "repeats", "6 cells"),
    ),
    "fraction 0": ("signals", {"signals": {"fractions": [0.0, 0.5]}}, ("signals", "fractions")),
    "fraction 1": ("signals", {"signals": {"fractions": [1.0]}}, ("signals", "fractions")),
    "no fraction": ("signals", {"signals": {"fractions": []}}, ("signals", "fractions")),
    "a fraction that is nan": ("signals", {"signals": {"fractions": [math.nan]}}, ("signals", "fractions")),
    "one seed": ("signals", {"signals": {"seeds": 1}}, ("signals", "seeds", "at least 2")),
    "frequent share 1": ("signals", {"signals": {"frequent_share": 1.0}}, ("signals", "frequent_share")),
    "no rates": ("signals", {"learning_rates": None}, ("learning_rates",)),
    "an unwatched arm": (
        "signals",
        {"arms": {"baseline": {}, "blind": {"method": "baseline", "probes": {"named": ["variance"]}}}},
        ("probes", "'blind'", "tev"),
    ),
    "too many trials": ("signals", {"signals": {"seeds": 10_000}}, ("signals", "40000")),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_a_bad_file_is_refused_in_one_line_with_the_key(tables: Tables, problem: str) -> None:
    kind, changes, words = REFUSED[problem]
    with pytest.raises(ConfigError) as caught:
        read(tables(kind, **changes))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("study.toml: ")
    for word in words:
        assert word in text, text


@both
def test_a_study_is_read_again_from_its_table(tables: Tables, kind: str) -> None:
    spec = read(tables(kind))
    again = read(tomllib.loads(dump_toml(spec.table())))
    assert again.table() == spec.table()
    assert again.fixed() == spec.fixed()
    assert {name: arm.run(0, 1, 2).table() for name, arm in again.arms.items()} == {
        name: arm.run(0, 1, 2).table() for name, arm in spec.arms.items()
    }


@both
def test_the_preset_of_the_kind_is_read_and_plans_all_its_runs(kind: str) -> None:
    raw, _ = study_tables(cli.make_parser().parse_args(["study", "--preset", kind]))
    spec = read(raw)
    assert read(tomllib.loads(dump_toml(spec.table()))).table() == spec.table()
    assert len(next(kind_of(spec).rounds(spec))) == spec.first_runs() == spec.most_runs()


def test_another_seed_for_the_data_changes_no_other(tables: Tables) -> None:
    arm = read(tables("seeds")).arms["baseline"]
    assert arm.run(0, 3) == arm.run(0, 3, 3)
    seeds = arm.run(0, 3, 5).seeds
    assert (seeds.init, seeds.data, seeds.other) == (3, 5, 3)


def test_studies_of_both_kinds_can_be_written_in_python(tables: Tables) -> None:
    for kind in BOTH:
        raw = tables(kind)
        assert Study(**raw).spec.table() == read(raw).table()
    with pytest.raises(ConfigError, match="learning_rates"):
        Study(**tables("seeds"), learning_rates={"low": 0.1, "high": 0.2})
    with pytest.raises(ConfigError, match="learning_rates: missing"):
        Study(**tables("signals", learning_rates=None))


def test_a_kind_that_is_no_name_is_refused_in_python_too(tables: Tables) -> None:
    with pytest.raises(ConfigError, match="kind"):
        Study(**tables("seeds") | {"kind": ["seeds"]})


def test_tokens_of_a_model_that_no_host_knows_are_refused_before_the_folder_is_made(
    tables: Tables, user_code: Any, tmp_path: Path
) -> None:
    raw = tables("signals", arms={"baseline": {}})
    study = Study.of(read_any_study(raw, "study.toml", UserCode(model=user_code.build_bigram)))
    with pytest.raises(ConfigError, match=r"probes\.tokens: the token embedding of a Bigram"):
        study.run(tmp_path / "study", workers=0)
    assert not (tmp_path / "study").exists()


def test_a_model_that_no_host_knows_can_be_in_a_study_of_signals_without_tokens(
    tables: Tables, user_code: Any, tmp_path: Path
) -> None:
    raw = tables("signals", arms={"baseline": {}})
    raw["probes"]["tokens"] = False
    findings = Study.of(read_any_study(raw, "study.toml", UserCode(model=user_code.build_bigram))).run(
        tmp_path / "study", workers=0
    )
    assert {"tev_mean", "tev_std", "variance", "variance_embedding"} <= set(findings.runs[0].trace.signals)
    assert any("tokens were not kept" in warning for warning in findings.warnings)
    write_report(findings)
    strict(tmp_path / "study" / "results.json")


# --- from end to end --------------------------------------------------------------------------------------------------


def test_every_pair_of_seeds_is_one_run(whole: Mapping[str, Any]) -> None:
    findings = whole["seeds"]
    pairs = {(run.trial.seed, run.trial.data_seed) for run in findings.runs}
    assert pairs == {(init, data) for init in range(3) for data in range(2)}
    assert len(findings.runs) == len({run.run_id for run in findings.runs}) == 6
    assert {path.name for path in (findings.evidence.folder / "runs").iterdir()} == {
        run.run_id for run in findings.runs
    }


def test_every_arm_meets_every_rate_with_every_seed(whole: Mapping[str, Any]) -> None:
    findings = whole["signals"]
    assert len({run.run_id for run in findings.runs}) == 2 * 2 * 2 == findings.spec.most_runs()
    assert {run.trial.data_seed for run in findings.runs} == {None}
    assert {run.fails for run in findings.runs} == {True, False}, "the study has nothing to tell apart"


def test_init_seed_and_data_seed_act_apart(whole: Mapping[str, Any]) -> None:
    """One init seed: one initial loss, whatever the data; one data seed: other weights, so another first loss."""
    findings = whole["seeds"]
    initial: dict[int, set[float]] = {}
    curves: set[str] = set()
    for run in findings.runs:
        initial.setdefault(run.trial.seed, set()).add(run.outcome.initial_loss)
        curves.add(json.dumps([row["loss"] for row in load_steps(findings.evidence.folder / "runs" / run.run_id)]))
    assert all(len(losses) == 1 for losses in initial.values())
    assert len(set.union(*initial.values())) == 3
    assert len(curves) == 6


def test_runs_of_one_init_begin_with_one_model_and_of_one_data_seed_with_one_batch(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = read(tables("seeds", training={"steps": 3})).arms["baseline"]
    seen: dict[tuple[int, int], list[torch.Tensor]] = {}
    drawn = execution.training_batch

    def note(*args: Any, **kwargs: Any) -> torch.Tensor:
        batch = drawn(*args, **kwargs)
        seen[pair].append(batch)
        return batch

    monkeypatch.setattr(execution, "training_batch", note)
    models: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    for pair in ((0, 0), (0, 1), (1, 0)):
        seen[pair] = []
        models[pair] = build(arm.run(-96, *pair), torch.device("cpu")).state_dict()
        execute(arm.run(-96, *pair), tmp_path)
    same = {key: torch.equal(value, models[0, 1][key]) for key, value in models[0, 0].items()}
    assert all(same.values())
    assert not all(torch.equal(value, models[1, 0][key]) for key, value in models[0, 0].items())
    assert torch.equal(seen[0, 0][0], seen[1, 0][0])
    assert not torch.equal(seen[0, 0][0], seen[0, 1][0])


SECTIONS = {
    "seeds": ("Seeds", "Loss curves by seed", "Sources of the variance", "Runs without outcome"),
    "signals": (
        "Does TEV correlate with gradient variance?",
        "Do the signals predict whether a run fails?",
        "Prediction over the run",
        "TEV against gradient variance",
        "Each arm separately",
        "TEV over training",
        "Gradient variance by layer",
        "Cost of the signals",
        "Runs without outcome",
    ),
}


@both
def test_the_report_has_its_sections_and_its_numbers_no_nan(whole: Mapping[str, Any], kind: str) -> None:
    folder = whole[kind].evidence.folder
    results = strict(folder / "results.json")
    jsonschema.validate(results, schema(kind))
    assert results["kind"] == kind
    assert results["study"]["verdicts"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    for title in SECTIONS[kind]:
        assert f"<h2>{title}</h2>" in page, title
    rows = list(csv.reader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"), newline="")))
    assert len({len(row) for row in rows}) == 1
    for row in rows:
        for cell in row:
            assert cell[:1] not in ("=", "+", "@", "\t", "\r", "-") or float(cell) < 0, f"armed: {cell!r}"


def test_a_study_at_one_rate_asks_for_correlations_alone(tables: Tables, tmp_path: Path) -> None:
    rates = {"low": "2^-7", "high": "2^-7"}
    findings = Study.of(read(tables("signals", learning_rates=rates))).run(tmp_path / "study", workers=0)
    titles = [section.title for section in kind_of(findings.spec).content(findings).sections]
    assert titles[:2] == ["Does TEV correlate with gradient variance?", "Conclusions"]
    assert not [line for line in findings.warnings if "predicted" in line or "bracketed" in line]


def test_a_study_that_read_all_weights_has_a_training_map(whole: Mapping[str, Any]) -> None:
    pytest.importorskip("hmmlearn")
    findings = whole["seeds"]
    (group,) = findings.groups
    assert group.why_no_map == ""
    assert all(len(path) == 7 for path in group.map.paths)
    assert "<h2>Training map: baseline at LR 0.0156</h2>" in (findings.evidence.folder / "report.html").read_text(
        "utf-8"
    )


def test_states_are_entered_when_they_are_though_the_first_run_ended_early(whole: Mapping[str, Any]) -> None:
    pytest.importorskip("hmmlearn")
    (group,) = whole["seeds"].groups
    assert group.map.states >= 2
    late = [np.array([0] * (len(path) - 1) + [group.map.states - 1]) for path in group.map.paths]
    group = replace(group, map=replace(group.map, paths=late))
    expected = map_rows(group)
    first = group.runs[0]
    short = replace(first, facts=replace(first.facts, steps=first.facts.steps[:2]))
    assert map_rows(replace(group, runs=[short, *group.runs[1:]])) == expected


def map_rows(group: Any) -> list[list[str]]:
    """The table of states under a training map."""
    section = next(one for one in view_sections([group]) if one.title.startswith("Training map"))
    return [list(row) for row in section.table.rows]


def test_the_numbers_of_seeds_are_those_that_the_runs_kept(whole: Mapping[str, Any]) -> None:
    findings = whole["seeds"]
    (group,) = strict(findings.evidence.folder / "results.json")["seeds"]
    losses = [load_outcome(findings.evidence.folder / "runs" / run["id"]).final_loss for run in group["runs"]]
    mean = math.fsum(losses) / 6
    deviation = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / 5)
    assert group["mean"] == pytest.approx(mean)
    assert group["deviation"] == pytest.approx(deviation)
    for run, loss in zip(group["runs"], losses, strict=True):
        assert run["score"] == pytest.approx((loss - mean) / deviation)
    assert {(run["init"], run["data"]) for run in group["runs"]} == {(i, d) for i in range(3) for d in range(2)}
    shares = [group["components"][part]["share"] for part in ("rows", "columns", "rest")]
    assert math.fsum(shares) == pytest.approx(1.0)


@both
def test_a_finished_study_trains_nothing_again_and_says_the_same(
    whole: Mapping[str, Any], kind: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole[kind].evidence.folder, tmp_path / "study"))
    before, trained = strict(folder / "results.json"), Trained()
    write_report(Study.of(whole[kind].spec).run(folder, executor=InlineExecutor(trained)))
    assert trained.names == []
    assert strict(folder / "results.json") == before
    write_report(load_stored(folder).findings())
    assert strict(folder / "results.json") == before
    lost = whole[kind].runs[1].run_id
    (folder / "runs" / lost / "outcome.json").unlink()
    Study.of(whole[kind].spec).run(folder, executor=InlineExecutor(trained))
    assert trained.names == [lost]


def test_more_seeds_keep_every_run(whole: Mapping[str, Any], tables: Tables, tmp_path: Path) -> None:
    for kind, table in (("seeds", {"data": 3}), ("signals", {"seeds": 3})):
        folder = Path(shutil.copytree(whole[kind].evidence.folder, tmp_path / kind))
        trained = Trained()
        findings = Study.of(read(tables(kind, **{kind: table}))).run(folder, executor=InlineExecutor(trained))
        assert len(trained.names) == len(findings.runs) - len(whole[kind].runs) == {"seeds": 3, "signals": 4}[kind]
        write_report(findings)
        strict(folder / "results.json")


def test_runs_that_break_at_once_still_end_in_a_report(tables: Tables, tmp_path: Path) -> None:
    """No loss is finite, so no mean, no components and no map."""
    raw = tables("seeds", seeds={"learning_rate": 2.0**60}, common=[])
    findings = Study.of(read(raw)).run(tmp_path / "study", workers=0)
    assert {run.outcome.stopped for run in findings.runs} != {None}
    write_report(findings)
    assert strict(tmp_path / "study" / "results.json")["study"]["warnings"]


def test_signals_of_sizes_are_made_and_told_apart(tables: Tables, tmp_path: Path) -> None:
    sizes = {f"{n} deep": {"model": {"num_layers": n}} for n in (1, 2)}
    raw = tables("signals", sizes=sizes, arms={"baseline": {}})
    findings = Study.of(read(raw)).run(tmp_path / "study", workers=0)
    assert len(findings.runs) == 2 * 2 * 2
    layers = {run.trial.arm: {k for k in run.trace.signals if "layer" in k} for run in findings.runs}
    assert layers["baseline, 1 deep"] == {"variance_layer_0"}
    assert layers["baseline, 2 deep"] == {"variance_layer_0", "variance_layer_1"}
    write_report(findings)
    assert load_study(tmp_path / "study").spec.table() == read(raw).table()


def test_results_of_no_run_at_all_are_no_error(tables: Tables, tmp_path: Path) -> None:
    for kind in BOTH:
        spec = read(tables(kind))
        trials = next(kind_of(spec).rounds(spec))
        names = {trial: repr(trial) for trial in trials}
        for asked in (trials, []):  # none came to an outcome; none was made yet
            results = write_report(analysed(spec, dict.fromkeys(asked), names, tmp_path))
            jsonschema.validate(results, schema(kind))


@pytest.fixture
def trimtab(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The command line in this process, in an empty folder: code, output, errors."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, handler)


@both
def test_the_command_line_plans_and_reports(
    whole: Mapping[str, Any], tables: Tables, kind: str, trimtab: Any, tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text(tomli_w.dumps(tables(kind)), encoding="utf-8")
    code, out, err = trimtab("study", "study.toml", "--plan", "--workers", "1")
    assert (code, err) == (0, "")
    assert str(whole[kind].spec.most_runs()) in out
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]
    folder = Path(shutil.copytree(whole[kind].evidence.folder, tmp_path / "study"))
    before = (folder / "results.json").read_text()
    code, out, err = trimtab("report", folder)
    assert (code, err) == (0, "")
    assert (folder / "results.json").read_text() == before


# --- traces and facts -------------------------------------------------------------------------------------------------


def test_traces_are_kept_in_a_file_and_come_back(whole: Mapping[str, Any], tmp_path: Path) -> None:
    kept = {run.run_id: run.trace for run in whole["signals"].runs}
    kept["empty"] = Trace(np.zeros(0, np.int64), {}, np.zeros((0, 3, 56)), {})
    save_traces(kept, tmp_path / "traces.npz")
    back = load_traces(tmp_path / "traces.npz")
    assert back.keys() == kept.keys()
    for name, trace in kept.items():
        assert back[name].steps.tolist() == trace.steps.tolist()
        assert back[name].signals.keys() == trace.signals.keys()
        for key, values in trace.signals.items():
            np.testing.assert_allclose(back[name].signals[key], values, rtol=1e-6, err_msg=key)
        assert back[name].histogram.shape == trace.histogram.shape
        np.testing.assert_allclose(back[name].histogram, trace.histogram, atol=1e-3)
        assert back[name].times == pytest.approx(trace.times, rel=1e-6)


def test_a_trace_holds_the_readings_and_the_steps_between_them(whole: Mapping[str, Any]) -> None:
    findings = whole["signals"]
    for run in findings.runs:
        folder = findings.evidence.folder / "runs" / run.run_id
        readings, rows = load_readings(folder), {row["step"]: row for row in load_steps(folder)}
        trace = read_trace(folder, 0.9)
        assert trace.steps.tolist() == [row["step"] for row in readings]
        for key, signal_name in (
            ("all_grad/model/variance", "variance"),
            ("all_grad/layer.1/variance", "variance_layer_1"),
            ("embedding_weight_grad/model/variance", "variance_embedding"),
            ("embedding_weight/model/tev_mean", "tev_mean"),
        ):
            assert trace.signals[signal_name].tolist() == [row[key] for row in readings]
        before = 0
        for at, step in enumerate(trace.steps.tolist()):
            since = [rows[number] for number in range(before + 1, step + 1)]
            assert trace.signals["loss"][at] == pytest.approx(math.fsum(row["loss"] for row in since) / len(since))
            norms = sorted(row["grad_norm"] for row in since)
            middle = (norms[(len(norms) - 1) // 2] + norms[len(norms) // 2]) / 2
            assert trace.signals["grad_norm"][at] == pytest.approx(middle)
            before = step
        np.testing.assert_allclose(trace.histogram[:, 0].sum(-1), 1.0)


def test_gradient_variance_is_not_taken_for_that_of_the_weights(tables: Tables, tmp_path: Path) -> None:
    """Both are called variance, of one model, where a run also reads the statistics of all weights."""
    slugs = ["training_map", "variance", "tev"]
    arm = read(tables("signals", probes={"named": slugs})).arms["baseline"]
    run = tmp_path / execute(arm.run(-96, 0), tmp_path).run_id
    readings = load_readings(run)
    trace = read_trace(run, 0.9)
    for name, key in (("variance", "all_grad/model/variance"), ("tev_mean", "embedding_weight/model/tev_mean")):
        assert trace.signals[name].tolist() == [row[key] for row in readings]
    assert readings[0]["all_weights/model/variance"] != readings[0]["all_grad/model/variance"]


def test_traces_of_exploding_runs_keep_their_order(tmp_path: Path) -> None:
    values = np.array([1e-50, 1.0, 1e40, 1e50])
    trace = Trace(np.arange(1, 5), {"variance": values}, np.zeros((0, 3, 56)), {})
    with np.errstate(over="ignore", under="ignore"):
        save_traces({"run": trace}, tmp_path / "traces.npz")
    back = load_traces(tmp_path / "traces.npz")["run"].signals["variance"]
    assert (np.diff(back) > 0).all()


def test_a_trace_is_never_asked_beyond_the_step(whole: Mapping[str, Any]) -> None:
    trace = Trace(np.array([1, 5, 9]), {"x": np.array([10.0, 50.0, 90.0])}, np.zeros((0, 3, 1)), {})
    expected = {0: math.nan, 0.99: math.nan, 1: 10, 4.99: 10, 5: 50, 8: 50, 9: 90, 100: 90}
    for step, value in expected.items():
        assert trace.at("x", step) == pytest.approx(value, nan_ok=True), step
    assert math.isnan(trace.at("y", 5))
    for run in whole["signals"].runs:
        for cut in (3, 6, 12):
            later = run.trace.steps > cut
            changed = replace(run.trace, signals={k: np.where(later, 1e9, v) for k, v in run.trace.signals.items()})
            for name in run.trace.signals:
                assert changed.at(name, cut) == pytest.approx(run.trace.at(name, cut), nan_ok=True)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.8, 0.9, 0.999])
def test_frequent_tokens_are_the_fewest_that_make_up_the_share(share: float) -> None:
    for seed in range(20):
        source = np.random.default_rng(seed)
        count = source.integers(0, 30, size=12) * source.integers(0, 2, size=12)
        if count.sum() == 0:
            continue
        groups = token_groups(count, share)
        frequent: list[int] = []
        for token in sorted(range(12), key=lambda t: (-count[t], t)):
            if sum(count[t] for t in frequent) < share * count.sum():
                frequent.append(token)
        for token in range(12):
            expected = 2 if count[token] == 0 else 0 if token in frequent else 1
            assert groups[token] == expected, (seed, token)


def test_tokens_of_no_text_are_all_unseen() -> None:
    assert token_groups(np.zeros(4, np.int64), 0.9).tolist() == [2, 2, 2, 2]


def test_facts_are_kept_in_a_file_and_come_back(whole: Mapping[str, Any], tmp_path: Path) -> None:
    findings = whole["seeds"]
    kept = {run.run_id: read_facts(findings.evidence.folder / "runs" / run.run_id) for run in findings.runs}
    kept["nothing"] = NO_FACTS
    kept["large"] = SeedFacts(np.array([70_000, 1], np.uint32), np.zeros(0, np.int64), (), np.zeros((0, 0)), (0.0,) * 3)
    save_facts(kept, tmp_path / FACTS)
    back = load_facts(tmp_path / FACTS)
    assert back.keys() == kept.keys()
    for name, facts in kept.items():
        assert back[name].predictions.tolist() == facts.predictions.tolist()
        assert back[name].steps.tolist() == facts.steps.tolist()
        assert back[name].names == facts.names
        np.testing.assert_allclose(back[name].statistics, facts.statistics, rtol=1e-6)
        assert back[name].spikes == pytest.approx(facts.spikes, nan_ok=True)


def test_facts_hold_all_statistics_of_all_readings(whole: Mapping[str, Any]) -> None:
    findings = whole["seeds"]
    run = findings.evidence.folder / "runs" / findings.runs[0].run_id
    facts, readings = read_facts(run), load_readings(run)
    assert len(facts.names) == 14
    assert facts.steps.tolist() == [1, 4, 8, 12, 16, 20, 24]
    for at, name in enumerate(facts.names):
        assert facts.statistics[:, at].tolist() == [row[name] for row in readings]


def test_a_group_of_seeds_takes_five_runs(whole: Mapping[str, Any]) -> None:
    findings = whole["seeds"]
    trials = [run.trial for run in findings.runs]
    names = {run.trial: run.run_id for run in findings.runs}
    outcomes: dict[Trial, Outcome | None] = {run.trial: run.outcome for run in findings.runs}
    for number in range(1, 7):
        groups = seed_groups({trial: outcomes[trial] for trial in trials[:number]}, names, findings.evidence.folder)
        assert [len(group.runs) for group in groups] == ([number] if number >= 5 else [])
    lost = {trial: None if at < 2 else outcomes[trial] for at, trial in enumerate(trials)}
    assert seed_groups(lost, names, findings.evidence.folder) == []


def test_a_run_that_two_rounds_asked_for_is_one_seed(whole: Mapping[str, Any]) -> None:
    findings = whole["seeds"]
    outcomes = {run.trial: run.outcome for run in findings.runs[:4]}
    names = {run.trial: run.run_id for run in findings.runs}
    twice = replace(findings.runs[0].trial, round=3)
    assert (
        seed_groups({**outcomes, twice: findings.runs[0].outcome}, {**names, twice: "again"}, findings.evidence.folder)
        == []
    )


def numbers(value: Any, path: str = "") -> dict[str, float]:
    """Every number of a JSON value by its path."""
    if isinstance(value, dict):
        return {k: v for key, one in value.items() for k, v in numbers(one, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for at, one in enumerate(value) for k, v in numbers(one, f"{path}/{at}").items()}
    return {path: value} if isinstance(value, int | float) else {}


@both
def test_the_analysis_of_what_was_kept_is_that_of_the_runs(whole: Mapping[str, Any], kind: str, tmp_path: Path) -> None:
    """Readings, steps, predictions and tokens may be deleted once their essence is kept beside the study."""
    findings = whole[kind]
    results = {run.trial: run.outcome for run in findings.runs}
    names = {run.trial: run.run_id for run in findings.runs}
    runs = [findings.evidence.folder / "runs" / run.run_id for run in findings.runs]
    save_facts({run.name: read_facts(run) for run in runs}, tmp_path / FACTS)
    if kind == "signals":
        save_traces(
            {run.name: read_trace(run, findings.spec.signals.frequent_share) for run in runs}, tmp_path / TRACES
        )
    found = analysed(findings.spec, results, names, tmp_path)
    assert found.warnings == findings.warnings
    written = numbers(json.loads(json_text(write_report(found))))
    expected = numbers(strict(findings.evidence.folder / "results.json"))
    ignored = {key for key in written | expected if "provenance" in key}
    assert written.keys() - ignored == expected.keys() - ignored
    for key in expected.keys() - ignored:
        assert written[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key


def test_traces_of_an_older_state_do_not_hide_new_runs(
    whole: Mapping[str, Any], tables: Tables, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole["signals"].evidence.folder, tmp_path / "study"))
    save_traces({run.run_id: run.trace for run in whole["signals"].runs}, folder / TRACES)
    findings = Study.of(read(tables("signals", signals={"seeds": 3}))).run(folder, workers=0)
    assert all(len(run.trace.steps) for run in findings.runs)


def test_costs_are_spread_over_the_cadence_of_the_preset(whole: Mapping[str, Any], tables: Tables) -> None:
    findings = whole["signals"]
    raw = tables("signals", probes={"preset": "full", "named": [], "every": None}, training={"steps": 400})
    raw["probes"].pop("every")
    spec = read(raw)
    results = {run.trial: run.outcome for run in findings.runs}
    names = {run.trial: run.run_id for run in findings.runs}
    found = analysed(spec, results, names, findings.evidence.folder)
    for cost in found.costs.values():
        assert cost.variance_amortised == pytest.approx(cost.variance / 50)


def test_an_arm_may_be_called_all(whole: Mapping[str, Any], tables: Tables) -> None:
    findings = whole["signals"]
    spec = read(tables("signals", arms={"all": {"method": "baseline"}, "other": {"method": "qk_norm"}}))
    new = {"baseline": "all", "=cmd()": "other"}
    results = {replace(run.trial, arm=new[run.trial.arm]): run.outcome for run in findings.runs}
    names = {replace(run.trial, arm=new[run.trial.arm]): run.run_id for run in findings.runs}
    found = analysed(spec, results, names, findings.evidence.folder)
    keys = [(one.runs, one.signal, one.against) for one in found.related]
    assert len(keys) == len(set(keys))


# --- runs of other studies --------------------------------------------------------------------------------------------


@pytest.fixture
def wider(tables: Tables) -> Any:
    """The study of seeds with a further arm."""
    return read(tables("seeds", arms={"baseline": {}, "normed": {"method": "qk_norm"}}))


def test_runs_of_another_study_are_copied_and_not_trained(
    whole: Mapping[str, Any], wider: Any, tmp_path: Path, contents: Any
) -> None:
    other, trained = whole["seeds"].evidence.folder, Trained()
    before = contents(other)
    findings = run_study(wider, tmp_path / "new", InlineExecutor(trained), None, [other])
    overlap = {run.run_id for run in whole["seeds"].runs}
    assert len(findings.runs) == 12
    assert set(trained.names) == {run.run_id for run in findings.runs} - overlap
    assert len(trained.names) == 6
    for name in overlap:
        mine, theirs = tmp_path / "new" / "runs" / name, other / "runs" / name
        assert {path.name for path in mine.iterdir()} == {path.name for path in theirs.iterdir()}
        for path in mine.iterdir():
            assert path.read_bytes() == (theirs / path.name).read_bytes()
    assert not [path for path in (tmp_path / "new" / "runs").iterdir() if path.name.startswith(".")]
    assert contents(other) == before, "the other study was touched"
    again = Trained()
    run_study(wider, tmp_path / "new", InlineExecutor(again))
    assert again.names == []


def test_a_study_made_of_taken_runs_says_what_the_other_said(whole: Mapping[str, Any], tmp_path: Path) -> None:
    """All is the same but the folder."""
    other, trained = whole["seeds"], Trained()
    study = Study.of(other.spec)
    findings = study.run(tmp_path / "new", executor=InlineExecutor(trained), reuse=[str(other.evidence.folder)])
    assert trained.names == []
    write_report(findings)
    assert strict(tmp_path / "new" / "results.json") == strict(other.evidence.folder / "results.json")


def test_of_several_studies_the_first_that_has_a_run_gives_it(whole: Mapping[str, Any], tmp_path: Path) -> None:
    other = whole["seeds"]
    empty = tmp_path / "empty"
    (empty / "runs").mkdir(parents=True)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(other.evidence.folder / "runs", unfinished / "runs")
    for outcome in unfinished.glob("runs/*/outcome.json"):
        outcome.unlink()
    trained = Trained()
    reuse = [empty, unfinished, other.evidence.folder]
    run_study(other.spec, tmp_path / "new", InlineExecutor(trained), None, reuse)
    assert trained.names == []


def test_a_half_copied_run_of_an_earlier_attempt_is_replaced(whole: Mapping[str, Any], tmp_path: Path) -> None:
    other, trained = whole["seeds"], Trained()
    name = other.runs[0].run_id
    for left in (name, f".{name}"):
        (tmp_path / "new" / "runs" / left).mkdir(parents=True)
        (tmp_path / "new" / "runs" / left / "steps.jsonl").write_text("half")
    for file in ("index.json", "study.toml"):
        shutil.copy(other.evidence.folder / file, tmp_path / "new" / file)
    run_study(other.spec, tmp_path / "new", InlineExecutor(trained), None, [other.evidence.folder])
    assert trained.names == []
    assert {path.name for path in (tmp_path / "new" / "runs").iterdir()} == {run.run_id for run in other.runs}


def test_a_damaged_run_of_another_study_is_refused_by_name_and_not_taken(
    whole: Mapping[str, Any], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(whole["seeds"].evidence.folder, tmp_path / "other"))
    damaged = whole["seeds"].runs[2].run_id
    (other / "runs" / damaged / "predictions.npz").write_bytes(b"nothing")
    with pytest.raises(IntegrityError, match=rf"other/runs/{damaged}/predictions\.npz"):
        run_study(whole["seeds"].spec, tmp_path / "new", InlineExecutor(Trained()), None, [other])
    assert not (tmp_path / "new" / "runs" / damaged).exists()


def test_a_folder_without_runs_cannot_be_reused(tables: Tables, trimtab: Any, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(tomli_w.dumps(tables("seeds")), encoding="utf-8")
    (tmp_path / "bare").mkdir()
    for other in ("bare", "nowhere", "study.toml"):
        code, _, err = trimtab("study", "study.toml", "--out", "new", "--reuse", other, "--workers", "0")
        assert code == 2
        assert f"--reuse {other}: not a study folder" in " ".join(err.split())
        assert not (tmp_path / "new").exists()


def test_the_command_line_takes_runs_of_several_studies(
    whole: Mapping[str, Any], tables: Tables, trimtab: Any, tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text(tomli_w.dumps(tables("seeds")), encoding="utf-8")
    (tmp_path / "empty" / "runs").mkdir(parents=True)
    both_folders = ("--reuse", tmp_path / "empty", "--reuse", whole["seeds"].evidence.folder)
    code, out, err = trimtab("study", "study.toml", "--out", "new", *both_folders, "--workers", "0")
    assert (code, err) == (0, "")
    assert "report:" in out
    for run in whole["seeds"].runs:
        taken = load_outcome(tmp_path / "new" / "runs" / run.run_id)
        assert taken is not None
        assert taken.seconds == run.outcome.seconds


# --- planted confounds ------------------------------------------------------------------------------------------------


def planted_traces(spec: Any, transient: float, noise: float) -> tuple[dict[Trial, Outcome | None], dict[str, Trace]]:
    """Traces of unrelated noise; before a quarter of the run TEV rises while the variance falls."""
    rng = np.random.default_rng(3)
    results: dict[Trial, Outcome | None] = {}
    traces: dict[str, Trace] = {}
    for trial in next(kind_of(spec).rounds(spec)):
        steps = np.arange(0, 401, 10)
        start = transient * np.maximum(0.0, 1 - steps / 100)
        arm = list(spec.arms).index(trial.arm)  # arms differ in both signals
        tev = np.exp(arm - start + noise * rng.normal(size=len(steps)))
        variance = np.exp(arm + start + noise * rng.normal(size=len(steps)))
        results[trial] = outcome_of_trial(spec, trial)
        loss = np.ones(len(steps))
        signals = {"tev_mean": tev, "tev_std": tev, "variance": variance, "loss": loss, "grad_norm": loss}
        traces[run_id_of(trial)] = Trace(steps, signals, np.zeros((0, 3, 1)), {})
    return results, traces


def test_a_transient_is_no_correlation_over_time_and_arms_are_none_between_runs(tables: Tables, tmp_path: Path) -> None:
    """Planted: a start-up transient of opposite sign in every run, and arms that differ in both signals."""
    changes = {"training": {"steps": 400}, "probes": {"every": 10}, "signals": {"seeds": 12}}
    arms = {name: {"method": name} for name in ("baseline", "qk_norm", "soft_cap", "layer_scale")}
    spec = read_any_study(tables("signals", **changes, arms=arms), "test")
    results, traces = planted_traces(spec, transient=5.0, noise=0.1)
    save_traces(traces, tmp_path / TRACES)

    def found(spec: Any) -> Any:
        findings = kind_of(spec).analyse(spec, evidence_on(spec, tmp_path, results))
        return next(
            one for one in findings.related if (one.runs, one.signal, one.against) == ("", "tev_mean", "variance")
        )

    honest = found(spec)
    assert abs(honest.over_time.estimate) < 0.1
    assert honest.within.low < 0 < honest.within.high
    assert honest.partial.estimate > 0.8, "arms at one rate differ in both signals"
    from_start = found(replace(spec, signals=replace(spec.signals, from_fraction=0.0)))
    assert from_start.over_time.estimate < -0.3, "the transient was planted"


@pytest.mark.parametrize(("numerics", "interaction", "shown"), [(0.05, 0.0, False), (0.005, 0.05, True)])
def test_numerics_do_not_pose_as_interaction(
    tables: Tables, tmp_path: Path, numerics: float, interaction: float, shown: bool
) -> None:
    """Planted: cells that differ by numerics alone, or by an interaction of both seeds."""
    spec = read_any_study(tables("seeds", seeds={"init": 6, "data": 6, "repeats": 12}), "test")
    rng = np.random.default_rng(11)
    together = rng.normal(size=(6, 6)) * interaction
    results = {
        trial: replace(
            outcome_of_trial(spec, trial),
            final_loss=2.0 + together[trial.seed, trial.data_seed or 0] + numerics * float(rng.normal()),
        )
        for trial in next(kind_of(spec).rounds(spec))
    }
    assert sum(trial.repeat for trial in results) == 12 * len(spec.arms)
    findings = kind_of(spec).analyse(spec, evidence_on(spec, tmp_path, results))
    for group in findings.groups:
        assert len(group.runs) == 36, "a repeat is no further seed"
        assert group.components.repeats == 12
        assert (group.components.p_interaction < 0.05) is shown
        assert (group.components.interaction.share > group.components.numerics.share) is shown
    said = report_of(findings).results["study"]["verdicts"]
    wording = "data shown" if shown else "data not shown"
    assert any(wording in line for line in said)


def test_repeats_have_the_seeds_of_their_run_and_more_threads(tables: Tables) -> None:
    spec = read_any_study(tables("seeds", seeds={"init": 2, "data": 2, "repeats": 3}), "test")
    trials = next(kind_of(spec).rounds(spec))
    again = [trial for trial in trials if trial.repeat]
    assert len(again) == 3 * len(spec.arms)
    for trial in again:
        first, repeat = spec.run_of(replace(trial, repeat=0)), spec.run_of(trial)
        assert first.seeds == repeat.seeds
        assert repeat.protocol.training.threads == 2 * first.protocol.training.threads
        assert repeat.repeat == 1


def test_a_seed_offset_changes_every_run_and_a_neutral_one_none(tables: Tables) -> None:
    for kind in ("seeds", "signals"):
        changes: list[Raw] = [{}, {"seed_offset": 0}, {"seed_offset": 5000}]
        plain, neutral, other = (read_any_study(tables(kind, **change), "test") for change in changes)
        trials = next(kind_of(plain).rounds(plain))
        assert [plain.run_of(trial) for trial in trials] == [neutral.run_of(trial) for trial in trials]
        assert {plain.run_of(trial).seeds for trial in trials}.isdisjoint(other.run_of(trial).seeds for trial in trials)
        assert plain.table() == neutral.table()
        assert read_any_study(tomllib.loads(dump_toml(other.table())), "test").table() == other.table()
        assert plain.fixed() != other.fixed(), "a folder holds one of the two"


@pytest.mark.parametrize("offset", [-1, 10**9 + 1])
def test_a_seed_offset_out_of_range_is_refused(tables: Tables, offset: int) -> None:
    with pytest.raises(ConfigError, match="seed_offset"):
        read_any_study(tables("seeds", seed_offset=offset), "study.toml")
