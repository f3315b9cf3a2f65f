"""A study seen from elsewhere: its state while somebody drives it, and several studies side by side."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab import Study
from trimtab.cli import main
from trimtab.report.studies import comparison, overview, studies_page
from trimtab.report.text import duration
from trimtab.run.folder import OUTCOME
from trimtab.run.heartbeat import HEARTBEAT
from trimtab.study.failures import Failures
from trimtab.study.index import load_index
from trimtab.study.lock import StudyLock
from trimtab.study.status import status_of


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    """The command line sets a handler of SIGTERM for its process, which is that of all tests."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def unfinish(folder: Path, count: int) -> list[str]:
    """Take the outcomes of some runs away, as in a study that is still at work; returns their run ids."""
    names = list(dict.fromkeys(load_index(folder).runs.values()))[:count]
    for name in names:
        (folder / "runs" / name / OUTCOME).unlink()
    return names


def files(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in folder.rglob("*") if path.is_file()}


def test_a_finished_study_says_so_and_shows_the_limits_of_its_report(finished: Path) -> None:
    state, findings = status_of(finished)
    results = json.loads((finished / "results.json").read_text()) if (finished / "results.json").exists() else None
    assert state.state == "finished"
    assert (state.running, state.waiting, state.given_up) == (0, 0, 0)
    assert state.finished == len({run.run_id for run in findings.runs})
    assert state.most_seconds_left == 0.0
    assert {standing.arm for standing in state.standings} == set(findings.spec.arms)
    assert results is None or results["kind"] == state.kind


def test_the_numbers_of_a_standing_are_those_of_the_findings(finished: Path) -> None:
    state, findings = status_of(finished)
    for standing in state.standings:
        criterion = "d" if "quality" in standing.quantity else "collapse"
        estimate = findings.arms[standing.arm].criteria[criterion].breaks.lr50  # type: ignore[attr-defined]
        assert standing.value == estimate.estimate
        if estimate.bound is None:
            assert (standing.low, standing.high) == (estimate.low, estimate.high)


def test_a_study_at_work_counts_each_run_once_and_estimates_what_is_left(finished: Path) -> None:
    names = unfinish(finished, 3)
    (finished / "runs" / names[0] / HEARTBEAT).write_text('{"step": 7, "loss": 2.5}')
    old = finished / "runs" / names[1] / HEARTBEAT
    old.write_text('{"step": 3, "loss": "nan"}')
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    with StudyLock(finished) as lock:
        lock.describe({"processes": {"workers": 2}}, 2, "sweep")
        before = files(finished)
        state, _ = status_of(finished)
        assert files(finished) == before, "looking at a study changed it"
    assert state.state == "running"
    assert state.driver is not None
    assert (state.driver.pid, state.driver.round, state.driver.capacity) == (os.getpid(), "sweep", 2)
    assert (state.running, state.waiting) == (1, 2)
    assert [(run.run_id, run.step, run.loss) for run in state.at_work] == [(names[0], 7, 2.5)]
    assert state.round_seconds_left is not None
    assert 0 < state.round_seconds_left <= (state.most_seconds_left or 0)


def test_without_a_driver_an_unfinished_study_is_stopped_and_nothing_of_it_runs(finished: Path) -> None:
    names = unfinish(finished, 2)
    (finished / "runs" / names[0] / HEARTBEAT).write_text('{"step": 7, "loss": 2.5}')
    state, _ = status_of(finished)
    assert (state.state, state.driver, state.running, state.waiting) == ("stopped", None, 0, 2)


def test_failures_are_shown_with_their_causes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = unfinish(finished, 2)
    failures = Failures(finished)
    for _ in range(3):
        failures.add(names[0], "ValueError: no luck", killed=False)
    failures.add(names[1], "NODE_FAIL", killed=True)
    state, _ = status_of(finished)
    assert [(f.run_id, f.cause, f.attempts, f.kills, f.given_up) for f in state.failures] == [
        (names[0], "ValueError: no luck", 3, 0, True),
        (names[1], "NODE_FAIL", 0, 1, False),
    ]
    assert (state.given_up, state.waiting) == (1, 1)
    assert main(["status", str(finished)]) == 10
    shown = capsys.readouterr().out
    assert "ValueError: no luck (3 errors, 0 kills, given up)" in shown
    assert "NODE_FAIL (0 errors, 1 kills, tried again)" in shown


def test_the_queue_of_a_batch_system_is_shown(finished: Path) -> None:
    (finished / "jobs").mkdir()
    jobs = {"a": ["7_0", "waiting", "QOSMaxJobsPerUserLimit"], "b": ["7_1", "waiting", "QOSMaxJobsPerUserLimit"]}
    (finished / "jobs" / "queue.json").write_text(json.dumps({"refusal": "sbatch: limit", "jobs": jobs}))
    state, _ = status_of(finished)
    assert state.queue is not None
    assert state.queue.waiting == {"QOSMaxJobsPerUserLimit": 2}
    assert state.queue.refusal == "sbatch: limit"


def test_json_is_one_line_without_nan_and_holds_what_status_holds(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(finished), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    record = json.loads(lines[0], parse_constant=refuse)
    state, _ = status_of(finished)
    assert record["finished"] == state.finished
    assert len(record["standings"]) == len(state.standings)


def test_follow_ends_with_the_study(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(finished), "--follow"]) == 0
    assert capsys.readouterr().out.count("finished") >= 1


def test_several_studies_stand_in_one_table(
    finished: Path, tiny: Callable[..., Study], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    tiny(name="longer", training={"steps": 20}).run(other, workers=0)
    page = tmp_path / "studies.html"
    record = tmp_path / "studies.json"
    assert main(["studies", str(finished), str(other), "--html", str(page), "--json", str(record)]) == 0
    states = [status_of(folder)[0] for folder in (finished, other)]
    table = comparison(states).table
    assert table is not None
    assert list(table.columns) == ["quantity", "arm", *(state.name for state in states)]
    cells = {(row[0], row[1]): row[2:] for row in table.rows}
    for column, state in enumerate(states):
        for standing in state.standings:
            assert cells[standing.quantity, standing.arm][column] == standing.text
    shown = overview(states).table
    assert shown is not None
    assert [row[0] for row in shown.rows] == [state.name for state in states]
    text = page.read_text()
    assert "longer" in text
    assert "<script" not in text
    assert [study["name"] for study in json.loads(record.read_text())["studies"]] == [state.name for state in states]


def test_a_name_on_the_page_of_studies_is_text_and_nothing_else(tiny: Callable[..., Study], tmp_path: Path) -> None:
    tiny(name="<script>alert(1)</script>").run(tmp_path / "study", workers=0)
    page = studies_page([status_of(tmp_path / "study")[0]])
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_committed_study_has_a_state_too(finished: Path, tmp_path: Path) -> None:
    assert main(["export", str(finished), str(tmp_path / "export")]) == 0
    state, _ = status_of(tmp_path / "export")
    assert state.state == "finished"
    assert state.finished == status_of(finished)[0].finished


@pytest.mark.parametrize("command", ["status", "stop", "studies"])
def test_a_folder_without_a_study_is_named(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert f"{tmp_path}: not a study folder" in capsys.readouterr().err


def test_stop_says_when_nobody_works_on_a_study(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", str(finished)]) == 0
    assert "no process works on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (math.inf, "-"),
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_a_duration_reads_like_a_clock(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "slrum"], "--executor: unknown 'slrum'"),
        (["--executor", "slurm", "--option", "partitoin=gpu"], "unknown 'partitoin'; it takes 'partition'"),
        (["--executor", "slurm", "--option", "time_minutes=0"], "time_minutes must be positive"),
        (["--executor", "ray", "--workers", "2"], "--workers: cannot be used with --executor"),
        (["--option", "workers=-1"], "workers must not be negative"),
    ],
)
def test_a_wrong_executor_or_option_is_named(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "--preset", "demo", "--out", str(tmp_path / "x"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_executor_may_stand_in_a_file(tiny_tables: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tomli_w

    (tmp_path / "here.toml").write_text("[processes]\nworkers = 1\n")
    (tmp_path / "study.toml").write_text(tomli_w.dumps(tiny_tables()))
    arguments = [str(tmp_path / "study.toml"), "--executor", str(tmp_path / "here.toml"), "--plan"]
    assert main(["study", *arguments]) == 0
    assert "1 workers" in capsys.readouterr().out
