from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from trimtab import cli
from trimtab.data import CorpusError
from trimtab.data.classics import Classics
from trimtab.methods import catalogue
from trimtab.study.hardware import AT_ONCE, GPUS, estimate, memory_gb
from trimtab.study.lock import StudyLock
from trimtab.study.plan import plan

Tables = Callable[..., dict[str, Any]]


@dataclass
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def trimtab(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str | Path) -> Ended:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        return Ended(code, *capsys.readouterr())

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def study_file(tiny_tables: Tables, tmp_path: Path) -> Callable[..., Path]:
    """A study file of the tiny study with changes."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "study.toml"
        path.write_text(tomli_w.dumps(tiny_tables(**changes)), encoding="utf-8")
        return path

    return write


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(ended: Ended, code: int, *words: str) -> None:
    assert ended.code == code, ended
    assert ended.err.count("\n") == 1, f"not one line: {ended.err!r}"
    assert ended.err.startswith("trimtab: ")
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err, ended.err


# Bad input: one line, the right code, nothing changed.

SMALL = {"low": "2^-6", "high": "2^0", "octaves_apart": 6}
BAD_TABLES = {
    "unknown key": ({"lerning_rates": {}}, ("lerning_rates", "learning_rates")),
    "unknown nested key": ({"training": {"stepz": 3}}, ("training", "stepz", "'steps'")),
    "unknown arm key": ({"arms": {"baseline": {"lr": 1}}}, ("arms.baseline", "lr")),
    "wrong type": ({"training": {"steps": "many"}}, ("training.steps", "whole number")),
    "boolean for a number": ({"training": {"steps": True}}, ("training.steps", "whole number")),
    "number as text": ({"criterion": {"margin": "1e-3"}}, ("criterion.margin",)),
    "fraction for a count": ({"training": {"steps": 2.5}}, ("training.steps",)),
    "NaN for an LR": ({"learning_rates": {"low": float("nan")}}, ("learning_rates.low", "finite")),
    "infinite LR": ({"learning_rates": {"high": float("inf")}}, ("learning_rates.high", "finite")),
    "negative LR": ({"learning_rates": {"low": -1.0}}, ("learning_rates", "positive")),
    "zero LR": ({"learning_rates": {"low": 0.0}}, ("learning_rates", "positive")),
    "reversed LRs": ({"learning_rates": {"low": "2^3", "high": "2^-3"}}, ("learning_rates", "above high")),
    "narrow LRs": ({"learning_rates": {"low": 1.0, "high": 1.001}}, ("learning_rates", "1/16")),
    "odd spacing": ({"learning_rates": {"octaves_apart": 0.3}}, ("learning_rates", "octaves_apart")),
    "missing LRs": ({"learning_rates": {"low": "2^-6", "high": None}}, ("learning_rates.high", "missing")),
    "no arms": ({"arms": {}}, ("arms",)),
    "arms as a list": ({"arms": ["baseline"]}, ("arms",)),
    "arm as a number": ({"arms": {"baseline": 3}}, ("arms.baseline", "table")),
    "unknown method": ({"arms": {"baseline": {}, "x": {"method": "qk_nrom"}}}, ("arms.x.method", "'qk_norm'")),
    "method missing": ({"arms": {"baseline": {}, "mine": {}}}, ("arms.mine", "method")),
    "bad setting of a method": (
        {"arms": {"baseline": {}, "x": {"method": [{"soft_cap": {"cap": -1.0}}]}}},
        ("arms.x.method[0].soft_cap", "cap"),
    ),
    "the same arm under two names": ({"arms": {"baseline": {}, "twin": {"method": "baseline"}}}, ("baseline", "twin")),
    "reference is no arm": ({"arms": {"qk_norm": {}}}, ("reference", "baseline")),
    "arm name with a control character": ({"arms": {"baseline": {}, "a\x1b[2J": {}}}, ("printable",)),
    "arm name of 101 characters": ({"arms": {"baseline": {}, "a" * 101: {}}}, ("100",)),
    "too many trials": ({"search": {"most_runs": 5001}}, ("10002", "10000")),
    "range that asks for too many trials": (
        {"learning_rates": {"low": "2^-500", "high": "2^500", "octaves_apart": 0.0625}},
        ("10000",),
    ),
    "steps beyond 64 bits": ({"training": {"steps": 2**63}}, ("training.steps", "64 bits")),
    "no steps": ({"training": {"steps": 0}}, ("training", "steps")),
    "warm-up as long as the run": ({"schedule": {"warmup_steps": 20}}, ("warmup_steps",)),
    "accumulate that does not divide": ({"training": {"accumulate": 3}}, ("accumulate",)),
    "heads that do not divide": ({"model": {"num_heads": 3}}, ("num_heads",)),
    "unknown data source": ({"data": {"classic": {}}}, ("data", "'classics'")),
    "two data sources": ({"data": {"classics": {}, "zipf_markov": {}}}, ("data", "one key")),
    "data file missing": ({"data": {"text_files": {"paths": ["nowhere.txt"]}}}, ("nowhere.txt",)),
    "vocabulary of model and data differ": ({"model": {"vocab_size": 9}}, ("vocab_size", "9", "8")),
    "two common interventions of one kind": ({"common": [{"qk_norm": {}}, {"qk_norm": {}}]}, ("qk_norm", "twice")),
    "cuda without a device": ({"training": {"device": "cuda"}}, ("cuda",)),
    "unknown precision": ({"training": {"precision": "fp8"}}, ("training.precision",)),
    "study name of the wrong type": ({"name": 3}, ("name",)),
    "unknown optimizer": ({"optimizer": {"moun": {}}}, ("optimizer", "did you mean 'muon'?")),
    "unknown optimizer of an arm": (
        {"arms": {"baseline": {}, "qk_norm": {"optimizer": {"adamv": {}}}}},
        ("arms.qk_norm.optimizer", "did you mean 'adamw'?"),
    ),
    "rates of parts that share a matrix": (
        {"optimizer": {"rates": {"q": 0.5}}},
        ("arms.baseline", "optimizer.rates", "q and k and v"),
    ),
    "rate of a part that is not there": (
        {"optimizer": {"rates": {"attn_norm": 0.5}}, "arms": {"baseline": {}, "sigma_reparam_normless": {}}},
        ("arms.sigma_reparam_normless", "optimizer.rates.attn_norm"),
    ),
}


def without_none(value: Any) -> Any:
    return {k: without_none(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_study_is_refused_in_one_line(
    trimtab: Any, tiny_tables: Tables, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    changes, words = BAD_TABLES[case]
    file = tmp_path / "bad.toml"
    file.write_text(tomli_w.dumps(without_none(tiny_tables(**changes))), encoding="utf-8")
    before = contents(tmp_path)
    assert_refused(trimtab("study", file, "--out", "out", "--workers", "0"), 2, *words)
    assert contents(tmp_path) == before


BAD_TEXTS = {
    "an arm given twice": b"[arms.baseline]\n[arms.baseline]\n",
    "no TOML": b"name = \n",
    "NUL": b"name = 'a\0b'\n",
    "byte-order mark in the middle": b"name = 'a'\n\xef\xbb\xbfx = 1\n",
    "no UTF-8": b"name = '\xff'\n",
    "nested too deeply": b"x = " + b"[" * 100_000,
    "a number of 5000 digits": b"x = " + b"9" * 5000,
    "larger than a config can be": b"#" * (1 << 20) + b"\nx = 1",
    "nothing at all": b"",
    "YAML": b"arms: !!python/object/apply:os.system ['true']\n",
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_unreadable_study_is_refused_in_one_line(trimtab: Any, tmp_path: Path, case: str) -> None:
    (tmp_path / "bad.toml").write_bytes(BAD_TEXTS[case])
    before = contents(tmp_path)
    assert_refused(trimtab("study", "bad.toml", "--out", "out"), 2, "bad.toml")
    assert contents(tmp_path) == before


BAD_SETTINGS = {
    "no equals sign": "training.steps",
    "no key": "=3",
    "through a value": "name.x=3",
    "unknown key": "training.stepz=3",
    "wrong type": "training.steps=many",
    "NaN": "learning_rates.low=nan",
    "nested too deeply": "name=" + "[" * 50_000,
    "a number of 5000 digits": "training.steps=" + "9" * 5000,
    "a whole table as text": "training=[",
    "empty value": "training.steps=",
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_malformed_setting_is_refused_in_one_line(
    trimtab: Any, study_file: Callable[..., Path], tmp_path: Path, case: str
) -> None:
    file = study_file()
    before = contents(tmp_path)
    ended = trimtab("study", file, "--out", "out", "--workers", "0", "--set", BAD_SETTINGS[case])
    assert_refused(ended, 2)
    assert contents(tmp_path) == before


def test_missing_study_file_is_named(trimtab: Any) -> None:
    assert_refused(trimtab("study", "nowhere.toml", "--out", "out"), 2, "nowhere.toml", "no such file")


def test_file_and_preset_together_or_neither_are_refused(trimtab: Any, study_file: Callable[..., Path]) -> None:
    assert_refused(trimtab("study", "--out", "out"), 2, "FILE", "--preset")
    assert_refused(trimtab("study", study_file(), "--preset", "demo", "--out", "out"), 2, "FILE", "--preset")


def test_unknown_preset_is_answered_with_the_nearest(trimtab: Any) -> None:
    assert_refused(trimtab("study", "--preset", "dmeo", "--out", "out"), 2, "did you mean 'demo'?")
    assert_refused(trimtab("study", "--preset", "../demo", "--out", "out"), 2)


def test_missing_out_is_refused(trimtab: Any, study_file: Callable[..., Path]) -> None:
    assert_refused(trimtab("study", study_file()), 2, "--out")


@pytest.mark.parametrize("option", [("--workers", "-1"), ("--workers-per-gpu", "0")])
def test_impossible_number_of_workers_is_refused(
    trimtab: Any, study_file: Callable[..., Path], option: tuple[str, str]
) -> None:
    assert_refused(trimtab("study", study_file(), "--out", "out", *option), 2, option[0])


@pytest.mark.parametrize("arguments", [(), ("stdy",), ("study", "--wrkers", "2"), ("study", "--workers", "two")])
def test_mistyped_command_is_a_usage_error(trimtab: Any, arguments: tuple[str, ...]) -> None:
    ended = trimtab(*arguments)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith("trimtab")


def test_damaged_corpus_is_refused_before_anything_is_written(
    trimtab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(self: Classics) -> None:
        raise CorpusError("austen.txt.xz: the text is damaged (SHA-256 differs); install trimtab again")

    monkeypatch.setattr(Classics, "load", damaged)
    assert_refused(trimtab("study", "--preset", "demo", "--out", "out"), 2, "austen.txt.xz", "damaged")
    assert not (tmp_path / "out").exists()


def test_ids_outside_the_vocabulary_are_refused_by_offset(
    trimtab: Any, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "ids.bin").write_bytes(b"\1\0" * 3000 + b"\xff\0" + b"\1\0" * 3000)
    data = {"token_files": {"train": "ids.bin", "held_out": "ids.bin", "vocab_size": 8}}
    assert_refused(trimtab("study", study_file(data=data), "--out", "out"), 2, "ids.bin", "255", "offset 3000")


def test_file_in_the_way_of_the_folder_is_refused(
    trimtab: Any, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    for out in ("taken", "taken/below"):
        assert_refused(trimtab("study", study_file(), "--out", out, "--workers", "0"), 2, "taken", "--out")


def test_folder_that_cannot_be_written_is_a_storage_error(
    trimtab: Any, study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert_refused(trimtab("study", study_file(), "--out", "out", "--workers", "0"), 32, "out", "not writable")
    assert list((tmp_path / "out").iterdir()) == []


def test_error_message_cannot_steer_the_terminal(trimtab: Any) -> None:
    ended = trimtab("study", "\x1b[31mred\nsecond line.toml", "--out", "out")
    assert_refused(ended, 2)
    assert "\x1b" not in ended.err


def test_study_name_cannot_steer_the_terminal(trimtab: Any, study_file: Callable[..., Path]) -> None:
    file = study_file(name="\x1b]0;owned\x07\x1b[2Jname", learning_rates=SMALL, arms={"baseline": {}})
    planned = trimtab("study", file, "--plan", "--workers", "0")
    studied = trimtab("study", file, "--out", "out", "--workers", "0")
    assert planned.code == 0
    assert studied.code == 0
    assert "\x1b" not in planned.out
    assert "\x1b" not in studied.out


# Folders.


@pytest.fixture
def done(trimtab: Any, study_file: Callable[..., Path], tmp_path: Path) -> Path:
    """The folder of a small finished study."""
    file = study_file(learning_rates=SMALL)
    ended = trimtab("study", file, "--out", "done", "--workers", "0")
    assert ended.code == 0, ended
    return tmp_path / "done"


def test_study_prints_a_table_and_writes_three_files(trimtab: Any, done: Path, tmp_path: Path) -> None:
    ended = trimtab("study", tmp_path / "study.toml", "--out", done, "--workers", "0")
    assert ended.code == 0
    assert ended.err == ""
    for word in ("baseline", "qk_norm", "LR50", "report.html"):
        assert word in ended.out
    for name in ("results.json", "results.csv", "report.html"):
        assert (done / name).stat().st_size > 100


def test_folder_of_another_protocol_is_refused(
    trimtab: Any, done: Path, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = study_file(learning_rates=SMALL, training={"steps": 21})
    before = contents(tmp_path)
    assert_refused(trimtab("study", file, "--out", done, "--workers", "0"), 2, "training.steps", "20", "21")
    assert contents(tmp_path) == before


def test_folder_at_work_is_refused_with_its_owner(trimtab: Any, done: Path, tmp_path: Path) -> None:
    with StudyLock(done):
        ended = trimtab("study", tmp_path / "study.toml", "--out", done, "--workers", "0")
    assert_refused(ended, 31, str(os.getpid()))


def test_damaged_run_ends_with_30(trimtab: Any, done: Path, tmp_path: Path) -> None:
    victim = sorted((done / "runs").iterdir())[0]
    (victim / "outcome.json").write_text("{")
    before = contents(tmp_path)
    assert_refused(trimtab("report", done), 30, victim.name)
    assert contents(tmp_path) == before
    assert_refused(trimtab("study", tmp_path / "study.toml", "--out", done, "--workers", "0"), 30, victim.name)
    own = ("done/index.json", "done/.lock")  # of a study that goes on
    assert {k: v[1] for k, v in contents(tmp_path).items() if k not in own} == {
        k: v[1] for k, v in before.items() if k not in own
    }
    assert_refused(trimtab("report", done), 30, victim.name)


@pytest.mark.parametrize("harm", ["cut", "edited"])
def test_damaged_index_ends_with_30_and_can_be_made_again(trimtab: Any, done: Path, tmp_path: Path, harm: str) -> None:
    index = done / "index.json"
    text = index.read_text()
    index.write_text(text[:-10] if harm == "cut" else text.replace('"complete": true', '"complete": false'))
    assert index.read_text() != text
    before = contents(tmp_path)
    for command in (("report", done), ("study", tmp_path / "study.toml", "--out", done, "--workers", "0")):
        assert_refused(trimtab(*command), 30, "index.json", "delete it")
        after = contents(tmp_path)
        assert {k: v for k, v in after.items() if ".lock" not in k} == {
            k: v for k, v in before.items() if ".lock" not in k
        }
    index.unlink()
    runs = contents(done / "runs")
    assert trimtab("study", tmp_path / "study.toml", "--out", done, "--workers", "0").code == 0
    assert contents(done / "runs") == runs, "a run was made again"


def test_trials_without_outcome_end_with_10(
    trimtab: Any, study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimtab.study.executors import inline
    from trimtab.study.executors.contract import Job, Progress, train_job
    from trimtab.study.executors.inline import InlineExecutor

    def fails_once(job: Job, progress: Progress) -> None:
        if job.spec.learning_rate == 1.0 and job.spec.seeds.init == 0 and len(job.spec.method) == 0:
            raise RuntimeError("no luck")
        train_job(job, progress)

    monkeypatch.setattr(inline, "InlineExecutor", lambda: InlineExecutor(fails_once))
    ended = trimtab("study", study_file(learning_rates=SMALL), "--out", "out", "--workers", "0")
    assert ended.code == 10
    assert "no luck" in ended.out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["excluded"][0]["reason"].endswith("no luck")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert trimtab("study", tmp_path / "study.toml", "--out", "out", "--workers", "0").code == 0


def test_memory_error_ends_with_33(trimtab: Any, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("trimtab.study.stored.load_stored", hungry)
    assert_refused(trimtab("report", done), 33, "memory")


# report


def test_report_writes_the_same_results_again(trimtab: Any, done: Path) -> None:
    before = {name: (done / name).read_bytes() for name in ("results.json", "results.csv", "report.html")}
    runs = contents(done / "runs")
    for name in before:
        (done / name).unlink()
    ended = trimtab("report", done)
    assert ended.code == 0, ended
    assert {name: (done / name).read_bytes() for name in before} == before
    assert contents(done / "runs") == runs


def results_in(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    del results["provenance"]
    return results


def test_report_of_an_unfinished_study_says_so_and_the_study_goes_on_from_there(
    trimtab: Any, done: Path, tmp_path: Path
) -> None:
    whole = results_in(done)
    victim = sorted((done / "runs").iterdir())[0]
    (victim / "outcome.json").unlink()
    before = contents(tmp_path)
    ended = trimtab("report", done)
    assert (ended.code, ended.err) == (0, "")
    assert f"unfinished: {len(whole['runs']) - 1} runs are made, 1" in ended.out
    after = contents(tmp_path)
    written = {f"done/{name}" for name in ("results.json", "results.csv", "report.html")}
    assert {k for k in after if after[k] != before.get(k)} == written | {"done"}
    results = results_in(done)
    assert (results["study"]["complete"], results["study"]["pending"]) == (False, 1)
    assert len(results["runs"]) == len(whole["runs"]) - 1
    assert "unfinished" in (done / "report.html").read_text()
    ended = trimtab("study", tmp_path / "study.toml", "--out", done, "--workers", "0")
    assert ended.code == 0
    assert "this study is unfinished" not in ended.out
    assert results_in(done) == whole


def test_report_can_be_written_elsewhere_and_leaves_the_study_as_it_is(
    trimtab: Any, done: Path, tmp_path: Path
) -> None:
    before = contents(done)
    ended = trimtab("report", done, "--out", "new/else where")
    assert (ended.code, ended.err) == (0, "")
    assert contents(done) == before
    for name in ("results.json", "results.csv", "report.html"):
        assert (tmp_path / "new" / "else where" / name).read_bytes() == (done / name).read_bytes()
    assert {path.name for path in (tmp_path / "new" / "else where").iterdir()} == {
        "results.json", "results.csv", "report.html",
    }  # fmt: skip
    assert "else where/report.html" in ended.out


def test_report_judges_the_same_runs_by_other_settings(trimtab: Any, done: Path, tmp_path: Path) -> None:
    before = contents(done)
    plain = results_in(done)
    ended = trimtab("report", done, "--out", "strict", "--set", "criterion.margin=0.001")
    assert (ended.code, ended.err) == (0, "")
    strict = results_in(tmp_path / "strict")
    assert strict["study"]["spec"]["criterion"]["margin"] == 0.001
    assert plain["study"]["spec"]["criterion"]["margin"] == 0.2
    assert [run["id"] for run in strict["runs"]] == [run["id"] for run in plain["runs"]]
    assert [run["label"] for run in strict["runs"]] != [run["label"] for run in plain["runs"]], "nothing changed"
    again = trimtab("report", done, "--out", "plain", "--set", "criterion.margin=0.2")
    assert again.code == 0
    assert results_in(tmp_path / "plain") == plain
    assert contents(done) == before


def test_report_with_settings_needs_a_folder_of_its_own(trimtab: Any, done: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    assert_refused(trimtab("report", done, "--set", "criterion.margin=0.1"), 2, "--out")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.steps=21", ("training.steps=21", "changes the runs", "criterion.margin")),
        ("arms.baseline.optimizer.beta1=0.5", ("changes the runs",)),
        ("arms.soft_cap={}", ("changes the runs",)),
        ("criterion.margn=0.1", ("criterion", "margn", "'margin'")),
        ("criterion.margin=-1", ("criterion", "margin")),
        ("criterion.margin", ("KEY=VALUE",)),
    ],
)
def test_report_refuses_settings_that_change_the_runs_or_cannot_be(
    trimtab: Any, done: Path, tmp_path: Path, setting: str, words: tuple[str, ...]
) -> None:
    before = contents(tmp_path)
    assert_refused(trimtab("report", done, "--out", "other", "--set", setting), 2, *words)
    assert contents(tmp_path) == before


def test_report_into_a_file_is_a_storage_error(trimtab: Any, done: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    before = contents(tmp_path)
    assert_refused(trimtab("report", done, "--out", "taken"), 32, "taken")
    assert contents(tmp_path) == before


# --keep and --retrain


@pytest.fixture
def moved_on(trimtab: Any, tmp_path: Path, tiny_tables: Tables) -> tuple[Path, Path]:
    """A finished study whose data changed since: its file and its folder."""
    import numpy as np

    data = tmp_path / "circle.bin"
    np.tile(np.arange(8), 2000).astype("<u2").tofile(data)
    source = {"train": str(data), "held_out": str(data), "vocab_size": 8}
    file = tmp_path / "study.toml"
    tables = tiny_tables(learning_rates=SMALL, data={"token_files": source})
    file.write_text(tomli_w.dumps(tables), encoding="utf-8")
    assert trimtab("study", file, "--out", "done", "--workers", "0").code == 0
    np.tile(np.arange(8)[::-1], 2000).astype("<u2").tofile(data)
    return file, tmp_path / "done"


def test_runs_of_other_data_stop_the_study_with_both_ways_on(trimtab: Any, moved_on: tuple[Path, Path]) -> None:
    file, folder = moved_on
    before = contents(folder)
    ended = trimtab("study", file, "--out", folder, "--workers", "0")
    assert_refused(ended, 2, str(folder), "baseline: other data", "qk_norm: other data", "--keep", "--retrain")
    after = contents(folder)
    assert {k: v for k, v in after.items() if k != ".lock"} == {k: v for k, v in before.items() if k != ".lock"}


def test_runs_of_other_data_can_be_kept_and_the_page_says_so(trimtab: Any, moved_on: tuple[Path, Path]) -> None:
    file, folder = moved_on
    runs, whole = contents(folder / "runs"), results_in(folder)
    assert whole["study"]["notes"] == []
    ended = trimtab("study", file, "--out", folder, "--workers", "0", "--keep")
    assert (ended.code, ended.err) == (0, "")
    assert contents(folder / "runs") == runs, "a run was made again"
    notes = results_in(folder)["study"]["notes"]
    assert [note.split(" (")[0] for note in notes] == ["baseline: other data", "qk_norm: other data"]
    assert results_in(folder)["arms"] == whole["arms"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    for note in notes:
        assert f"warning: {note}" in ended.out
        assert note in page
    # The choice is made: neither the same command without it nor the report asks again.
    assert trimtab("study", file, "--out", folder, "--workers", "0").code == 0
    assert "warning: baseline: other data" in trimtab("report", folder).out
    assert results_in(folder)["study"]["notes"] == notes


def test_runs_of_other_data_can_be_made_again(trimtab: Any, moved_on: tuple[Path, Path]) -> None:
    file, folder = moved_on
    old = {run["id"] for run in results_in(folder)["runs"]}
    ended = trimtab("study", file, "--out", folder, "--workers", "0", "--retrain")
    assert (ended.code, ended.err) == (0, "")
    results = results_in(folder)
    assert old.isdisjoint(run["id"] for run in results["runs"])
    assert results["study"]["notes"] == []
    assert "other data" not in ended.out
    fresh = trimtab("study", file, "--out", "fresh", "--workers", "0")
    assert fresh.code == 0
    assert results_in(folder.parent / "fresh") == results


@pytest.mark.parametrize("option", ["--keep", "--retrain"])
def test_a_study_that_did_not_change_is_the_same_with_either(trimtab: Any, done: Path, option: str) -> None:
    whole, runs = results_in(done), contents(done / "runs")
    assert trimtab("study", done.parent / "study.toml", "--out", done, "--workers", "0", option).code == 0
    assert results_in(done) == whole
    assert contents(done / "runs") == runs


def test_keep_and_retrain_exclude_each_other(trimtab: Any, study_file: Callable[..., Path], tmp_path: Path) -> None:
    file = study_file()
    before = contents(tmp_path)
    ended = trimtab("study", file, "--out", "out", "--workers", "0", "--keep", "--retrain")
    assert ended.code == 2
    assert "--retrain" in ended.err
    assert "Traceback" not in ended.err
    assert contents(tmp_path) == before


# A reader that leaves


@pytest.mark.parametrize(
    "command",
    [
        "study {file} --out out --workers 0",
        "study {file} --out out --workers 1",
        "study {file} --plan --workers 0",
        "report done",
        "methods",
    ],
)
def test_a_reader_that_leaves_ends_the_program_quietly(
    trimtab: Any, study_file: Callable[..., Path], tmp_path: Path, command: str
) -> None:
    file = study_file(learning_rates=SMALL)
    if "done" in command:
        assert trimtab("study", file, "--out", "done", "--workers", "0").code == 0
    arguments = [part.format(file=file) for part in command.split()]
    reading, writing = os.pipe()
    os.close(reading)  # it left before the first word
    with os.fdopen(writing, "wb") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "trimtab", *arguments],
            stdout=output, stderr=subprocess.PIPE, cwd=tmp_path, timeout=120, text=True,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_study_whose_reader_has_enough_goes_on_from_there(
    trimtab: Any, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = study_file(learning_rates=SMALL)
    script = f"'{sys.executable}' -m trimtab study '{file}' --out out --workers 0 | head -1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, cwd=tmp_path, timeout=120, text=True)
    assert (ended.returncode, ended.stderr) == (141, "")
    assert ended.stdout.startswith("sweep: ")
    assert ended.stdout.count("\n") == 1
    assert not (tmp_path / "out" / "results.json").exists(), "the study went on with nobody listening"
    assert trimtab("study", file, "--out", "out", "--workers", "0").code == 0
    assert trimtab("study", file, "--out", "whole", "--workers", "0").code == 0
    assert results_in(tmp_path / "out") == results_in(tmp_path / "whole")


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_report_of_no_study_is_refused(trimtab: Any, tmp_path: Path, folder: str) -> None:
    assert_refused(trimtab("report", folder), 2, "not a study folder")
    assert list(tmp_path.iterdir()) == []


# --plan, presets, methods, run, --help


def test_plan_writes_nothing_and_says_runs_hours_disk(
    trimtab: Any, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = study_file()
    before = contents(tmp_path)
    ended = trimtab("study", file, "--plan", "--out", "out", "--workers", "2")
    assert ended.code == 0
    assert ended.err == ""
    assert contents(tmp_path) == before
    assert "10 in the first phase, at most 18 in all" in ended.out
    for word in ("runs:", "hours:", "disk:", "MB", "2 workers"):
        assert word in ended.out


def test_setting_changes_the_study(trimtab: Any, study_file: Callable[..., Path]) -> None:
    ended = trimtab("study", study_file(), "--plan", "--workers", "0", "--set", "training.steps=33")
    assert ended.code == 0
    assert "33 steps a run" in ended.out


SLOW_TO_BUILD = ("depth",)  # 48 layers, which takes 20 seconds; depth-demo has the same form


@pytest.mark.parametrize(
    "preset",
    [pytest.param(name, marks=[pytest.mark.nightly] if name in SLOW_TO_BUILD else []) for name in cli.presets()],
)
def test_every_preset_is_a_study_that_can_be_built(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.config import load_toml
    from trimtab.study.kind import read_any_study

    if preset != "demo":
        monkeypatch.setattr("trimtab.study.plan.seconds_per_run", lambda *_: 1.0)  # timed steps take most of a plan
    path = Path(cli.__file__).parents[1] / "presets" / f"{preset}.toml"
    spec = read_any_study(load_toml(path), preset)
    assert spec.name == preset
    assert read_any_study(tomllib.loads(tomli_w.dumps(spec.table())), preset) == spec
    on_gpu = spec.protocol.training.device == "cuda"
    text = plan(spec, 2, GPUS["h100"] if on_gpu else None)
    assert f"at most {spec.most_runs()} in all" in text
    if on_gpu:
        hours = float(re.search(r"at most ([0-9.]+) in all on one NVIDIA H100", text)[1])  # type: ignore[index]
        assert hours <= 1.0, "a preset for a GPU fits into an hour by plan"


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name in cli.presets() if name.startswith("gpu-")])
def test_a_preset_for_a_gpu_runs_on_a_cpu_when_it_is_made_small(preset: str, tmp_path: Path) -> None:
    from trimtab import Study
    from trimtab.config import load_toml
    from trimtab.study.kind import read_any_study

    tables = load_toml(Path(cli.__file__).parents[1] / "presets" / f"{preset}.toml")
    tables["training"] |= {"device": "cpu", "steps": 6, "batch_size": 2}
    tables["schedule"]["warmup_steps"] = 2
    tables["model"] |= {"width": 10, "num_layers": 1, "num_heads": 1, "context": 16}
    tables["evaluation"] |= {"num_sequences": 4, "evaluations": 2}
    tables["learning_rates"]["octaves_apart"] = 11
    tables["search"] |= {"replicates": 0, "most_runs": 2}
    for size in tables.get("sizes", {}).values():
        size["model"] = {"width": 8 + 2 * size["model"]["num_layers"], "num_layers": 1, "num_heads": 1}
    spec = read_any_study(tables, preset)
    findings = Study.of(spec).run(tmp_path / "study", workers=0)
    assert not findings.evidence.errors
    assert {run.trial.arm for run in findings.runs} == set(spec.arms)


def test_the_plan_of_a_gpu_agrees_with_the_study_that_was_measured() -> None:
    """600 steps of 10 million parameters took 70 s with 8 runs at a time on an H100, so 8.8 s each."""
    from trimtab.config import load_toml
    from trimtab.run.cost import cost_of
    from trimtab.study.kind import read_any_study

    folder = Path(__file__).parents[1] / "studies" / "2026-11-26_gpu-10m"
    spec = read_any_study(load_toml(folder / "study.toml"), "study")
    arm = spec.arms["baseline"]
    need = estimate(arm.protocol, cost_of(arm.run(0, 0)), GPUS["h100"])
    rows = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]
    seconds = statistics.median(row["seconds"] for row in rows if row["arm"] == "baseline" and row["steps"] == 600)
    assert need.at_once == AT_ONCE == 8
    assert need.share_seconds == pytest.approx(seconds / AT_ONCE, rel=0.25)


def test_a_larger_batch_model_or_vocabulary_needs_more_memory_and_a_split_batch_less() -> None:
    from trimtab.run.cost import cost_of
    from trimtab.run.reading import read_run

    def memory(**tables: Any) -> float:
        run = read_run({"learning_rate": 1e-3, **tables}, "test")
        return memory_gb(run.protocol, cost_of(run))

    small = memory()
    assert memory(training={"batch_size": 256}) > small
    assert memory(model={"num_layers": 8}) > small
    assert memory(model={"num_layers": 8, "recompute": True}) < memory(model={"num_layers": 8})
    assert memory(training={"batch_size": 256, "accumulate": 8}) < memory(training={"batch_size": 256})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_study_for_a_gpu_can_be_planned_on_a_login_node(trimtab: Any) -> None:
    refused = trimtab("study", "--preset", "gpu-paper-table", "--plan")
    assert refused.code == 2
    assert "--hardware" in refused.err
    planned = trimtab("study", "--preset", "gpu-paper-table", "--plan", "--hardware", "a100")
    assert planned.code == 0
    for part in ("NVIDIA A100", "GB a run", "--executor slurm", "--executor ray", "Not measured"):
        assert part in planned.out, part
    unknown = trimtab("study", "--preset", "demo", "--plan", "--hardware", "a10")
    assert unknown.code == 2
    assert "--hardware: unknown 'a10'" in unknown.err


def test_methods_lists_all_with_equation_and_paper(trimtab: Any) -> None:
    ended = trimtab("methods")
    assert ended.code == 0
    blocks = ended.out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == list(catalogue())
    for block in blocks:
        equation = next(line for line in block.splitlines() if "equation:" in line)
        assert len(equation.split("equation:")[1].strip()) > 3, block
        assert "arXiv 2" in block or block.startswith("softmax1"), block
        assert "arXiv )" not in block, block


def test_methods_shows_one_and_refuses_an_unknown_one(trimtab: Any) -> None:
    assert trimtab("methods", "soft_cap").out.startswith("soft_cap\n")
    assert_refused(trimtab("methods", "softcap"), 2, "did you mean 'soft_cap'?")


@pytest.fixture
def run_file(tiny_tables: Tables, tmp_path: Path) -> Callable[..., Path]:
    """A run file of the tiny protocol."""

    def write(**changes: Any) -> Path:
        tables = tiny_tables(**changes)
        keys = ("model", "data", "training", "schedule", "evaluation", "common", "method", "learning_rate")
        path = tmp_path / "run.toml"
        path.write_text(tomli_w.dumps({"learning_rate": 0.03} | {k: tables[k] for k in keys if k in tables}))
        return path

    return write


def test_run_writes_weights_that_load(trimtab: Any, run_file: Callable[..., Path], tmp_path: Path) -> None:
    ended = trimtab("run", run_file(method="qk_norm"), "--out", "runs")
    assert ended.code == 0, ended
    (folder,) = (tmp_path / "runs").iterdir()
    assert str(folder.name) in ended.out
    weights = load_file(folder / "checkpoints" / "final.safetensors")
    assert any(key.startswith("trimtab.qk_norm") for key in weights)
    assert {entry.name for entry in folder.iterdir()} == {
        "spec.toml", "environment.json", "steps.jsonl", "outcome.json", "checkpoints", "predictions.npz",
    }  # fmt: skip


BAD_RUNS = {
    "unknown method": ({"method": "qk_nrom"}, ("method", "'qk_norm'")),
    "one intervention twice": ({"method": [{"qk_norm": {}}, {"qk_norm": {}}]}, ("qk_norm", "twice")),
    "zero LR": ({"learning_rate": 0.0}, ("learning_rate",)),
    "cuda without a device": ({"training": {"device": "cuda"}}, ("cuda",)),
    "context longer than the data": ({"model": {"context": 20_000}}, ("sequence",)),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_run_is_refused_in_one_line(trimtab: Any, run_file: Callable[..., Path], tmp_path: Path, case: str) -> None:
    changes, words = BAD_RUNS[case]
    file = run_file(**changes)
    ended = trimtab("run", file, "--out", "runs")
    assert_refused(ended, 2, *words)
    assert not list((tmp_path / "runs").glob("*/*")) if (tmp_path / "runs").exists() else True


@pytest.mark.parametrize("command", [(), ("study",), ("run",), ("report",), ("methods",)])
def test_help_works_and_lists_every_exit_code(trimtab: Any, command: tuple[str, ...]) -> None:
    ended = trimtab(*command, "--help")
    assert ended.code == 0
    assert ended.err == ""
    assert "usage: trimtab" in ended.out
    if not command:
        for code in ("0", "1", "2", "10", "30", "31", "32", "33", "75", "130", "141"):
            assert f"\n  {code} " in ended.out


def test_help_and_bad_commands_answer_without_torch() -> None:
    script = (
        "import sys\n"
        "from trimtab import cli\n"
        "try:\n    cli.main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_while_python_runs_a_string_ends_with_the_documented_code(tmp_path: Path) -> None:
    script = (
        "import os, runpy, signal, sys\n"
        "from trimtab import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it\n"
        "def interrupted(options):\n"
        "    exec('os.kill(os.getpid(), signal.SIGINT); signal.pause()', globals())\n"
        "cli._run_command = interrupted\n"
    )
    # Only a process that runs a module, and not a script, ends by the signal: so the module is imported by a module.
    (tmp_path / "begin.py").write_text(
        script + "sys.argv = ['trimtab', 'methods']\nrunpy.run_module('trimtab', run_name='__main__')\n"
    )
    command = [sys.executable, "-m", "begin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "interrupted" in done.stderr
    assert done.returncode == 130, done.stderr
