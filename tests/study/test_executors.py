"""What an executor's workers meet: silence, death, a place with a device, too many files; and what a run leaves set."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab import Study
from trimtab.run import execute as execution
from trimtab.run.execute import execute
from trimtab.run.folder import Outcome
from trimtab.run.heartbeat import HEARTBEAT
from trimtab.run.spec import RunSpec
from trimtab.study import round as rounds
from trimtab.study.executors.contract import Job, JobReport, Progress, train_job
from trimtab.study.executors.inline import InlineExecutor
from trimtab.study.executors.processes import ProcessExecutor
from trimtab.study.failures import Failures
from trimtab.study.folder import StorageError
from trimtab.study.round import Round, Silence
from trimtab.study.trial import Tick, Trial
from trimtab.testing.executor_tasks import job_spec

Make = Callable[..., Study]
FEW = {"low": "2^-6", "high": "2^0", "octaves_apart": 6}
SHORT = {"learning_rates": FEW, "search": {"replicates": 0, "most_runs": 2}, "arms": {"baseline": {}}}


class Shown(Silence):
    """Notes what a display is told."""

    def __init__(self) -> None:
        self.silences: list[tuple[Trial, float, bool]] = []
        self.ends: list[tuple[Trial, bool, str]] = []

    def silent(self, trial: Trial, seconds: float, replaced: bool) -> None:
        self.silences.append((trial, seconds, replaced))

    def finished(self, trial: Trial, outcome: Outcome | None, message: str) -> None:
        self.ends.append((trial, outcome is not None, message))


# --- silence ----------------------------------------------------------------------------------------------------------


def test_a_stopped_worker_is_replaced_and_the_study_ends_with_all_outcomes(
    tiny: Make, user_code: Any, tmp_path: Path
) -> None:
    shown = Shown()
    study = tiny(training={"silent_seconds": 3.0}, **SHORT)
    executor = ProcessExecutor(1, task=user_code.stop_once)
    findings = study.run(tmp_path / "study", executor=executor, display=shown)
    assert len((tmp_path / "marks" / "stopped").read_bytes()) >= 2, "the fault never fired, or the run was not repeated"
    replaced = [(trial, seconds) for trial, seconds, was_replaced in shown.silences if was_replaced]
    assert replaced
    assert all(seconds > 3 for _, seconds in replaced)
    assert findings.runs
    assert all(run.outcome is not None for run in findings.runs)
    assert not findings.evidence.errors


class Clock:
    """The time of a round, which passes when it waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class SilentExecutor:
    """One job whose heartbeat the test decides; dropped, it is killed, and the next attempt ends without outcome."""

    capacity = 1

    def __init__(self, clock: Clock, seconds: float, beat: Callable[[], None] = lambda: None) -> None:
        self.clock = clock
        self.seconds = seconds
        self.beat = beat
        self.submitted: list[str] = []
        self.dropped: list[float] = []
        self.news: list[JobReport] = []
        self.polls = 0

    def submit(self, job: Job) -> None:
        self.submitted.append(job.name)

    def poll(self, timeout: float) -> list[JobReport]:
        self.clock.now += self.seconds
        self.polls += 1
        self.beat()
        if self.polls == 20:
            return [JobReport(self.submitted[-1], "failed", message="the test is over")]
        news, self.news = self.news, []
        return news

    def drop(self, name: str) -> None:
        self.dropped.append(self.clock.now)
        self.news.append(JobReport(name, "killed", message="dropped"))


def carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_seconds: float, beat: Callable[[], None] = lambda: None
) -> tuple[Shown, SilentExecutor]:
    """One job, looked at every 10 seconds for 200 seconds."""
    clock = Clock()
    monkeypatch.setattr(rounds, "time", clock)
    monkeypatch.setattr("trimtab.study.failures.MOST_ATTEMPTS", 1)
    executor = SilentExecutor(clock, 10.0, beat)
    shown = Shown()
    trial = Trial(0, "baseline", Tick(0), 0)
    spec = job_spec()
    training = dataclasses.replace(spec.protocol.training, silent_seconds=silent_seconds)
    spec = dataclasses.replace(spec, protocol=dataclasses.replace(spec.protocol, training=training))
    whole = Round({"run": trial}, {"run": spec}, tmp_path, executor, Failures(tmp_path), shown)  # type: ignore[arg-type]
    whole.carry_out()
    assert [(ended, message) for _, ended, message in shown.ends] == [(False, "the test is over")]
    return shown, executor


def test_a_message_comes_once_after_a_minute_of_silence_and_replaces_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, executor = carried_out(tmp_path, monkeypatch, silent_seconds=1800)
    assert [(seconds, replaced) for _, seconds, replaced in shown.silences] == [(70.0, False)]
    assert executor.dropped == []
    assert executor.submitted == ["run"]


def test_how_long_silence_may_last_before_the_message_is_one_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "SILENT_SECONDS", 15.0)
    shown, _ = carried_out(tmp_path, monkeypatch, silent_seconds=1800)
    assert [seconds for _, seconds, _ in shown.silences] == [20.0]


def test_a_job_past_its_own_limit_is_dropped_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, executor = carried_out(tmp_path, monkeypatch, silent_seconds=95)
    assert [(seconds, replaced) for _, seconds, replaced in shown.silences] == [(70, False), (100, True), (70, False)]
    assert len(executor.dropped) == 1
    assert executor.submitted == ["run", "run"]


@pytest.mark.parametrize("stale", [False, True])
def test_a_job_that_has_not_begun_has_a_minute_whatever_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    """A worker imports torch first; the heartbeat of an earlier attempt is no sign of this one."""
    if stale:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / HEARTBEAT).touch()
    shown, _ = carried_out(tmp_path, monkeypatch, silent_seconds=15)
    assert [seconds for _, seconds, replaced in shown.silences if replaced] == [70, 70]


def test_a_job_that_falls_silent_after_it_began_has_its_own_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run" / HEARTBEAT
    file.parent.mkdir()
    shown, _ = carried_out(
        tmp_path, monkeypatch, silent_seconds=15, beat=lambda: file.touch(exist_ok=True) if not file.exists() else None
    )
    assert next(seconds for _, seconds, replaced in shown.silences if replaced) == 20


def test_a_heartbeat_that_moves_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run" / HEARTBEAT
    file.parent.mkdir()
    file.touch()
    times = iter(range(1, 100))

    def beat() -> None:
        at = next(times)
        os.utime(file, (at, at))

    shown, executor = carried_out(tmp_path, monkeypatch, silent_seconds=15, beat=beat)
    assert shown.silences == []
    assert executor.dropped == []


# --- places and devices -----------------------------------------------------------------------------------------------


def test_a_replaced_worker_takes_the_place_and_the_device_of_the_one_that_died(user_code: Any, tmp_path: Path) -> None:
    executor = ProcessExecutor(2, devices=("0", "1"), task=user_code.tell_device_and_wait)

    def begun(name: str) -> tuple[int, str]:
        executor.submit(Job(name, job_spec(), tmp_path))
        while not (tmp_path / name).exists():
            assert executor.poll(0.1) == []
        number, device = (tmp_path / name).read_text().split()
        return int(number), device

    with executor:
        first, device = begun("first")
        assert device == "0"
        assert begun("second")[1] == "1"
        os.kill(first, signal.SIGKILL)
        reports: list[JobReport] = []
        while not reports:
            reports = executor.poll(0.1)
        assert [(report.name, report.kind) for report in reports] == [("first", "killed")]
        third, device = begun("third")
        assert device == "0"
        assert third != first


# --- too many open files ----------------------------------------------------------------------------------------------


def test_too_many_open_files_end_the_study_with_a_remedy_that_helps(tiny: Make, tmp_path: Path) -> None:
    def open_too_many(job: Job, progress: Progress) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "steps.jsonl")

    with pytest.raises(StorageError, match=r"Too many open files.*raise the limit of open files \(ulimit -n\)") as told:
        tiny(**SHORT).run(tmp_path / "study", executor=InlineExecutor(open_too_many))
    assert "make room" not in str(told.value)
    assert str(told.value).count("\n") == 0


def test_too_many_open_files_of_the_driver_itself_have_the_same_remedy(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "study.toml")

    monkeypatch.setattr("trimtab.study.driver.write_study", refuse)
    with pytest.raises(StorageError, match=r"Too many open files; .*ulimit -n"):
        tiny(**SHORT).run(tmp_path / "study", workers=0)


# --- what a run leaves set --------------------------------------------------------------------------------------------


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """Settings of this process that differ from those of a run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def settings_now() -> Mapping[str, object]:
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "random": torch.get_rng_state().tolist(),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
    }


def run_of(study: Study) -> RunSpec:
    return study.spec.arms["baseline"].run(Tick(-96), 3)


def test_a_run_puts_back_what_it_set_for_the_whole_process(tiny: Make, tmp_path: Path, torch_settings: None) -> None:
    spec = run_of(tiny())
    torch.manual_seed(11)
    before = settings_now()
    inside: list[Mapping[str, object]] = []
    execute(spec, tmp_path, progress=lambda step, loss: inside.append(settings_now()))
    assert inside
    assert all(one["threads"] == spec.protocol.training.threads == 1 for one in inside)
    assert not any(one["deterministic"] for one in inside)
    assert inside[0]["random"] != before["random"], "the run drew nothing, so this test says nothing of its draws"
    assert settings_now() == before


@pytest.mark.parametrize("where", ["build", "start_rules", "progress"])
def test_a_run_that_raises_puts_it_back_too(
    tiny: Make, tmp_path: Path, torch_settings: None, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_: object) -> Any:
        torch.rand(3)
        raise RuntimeError("no luck")

    if where != "progress":
        monkeypatch.setattr(execution, where, fail)
    torch.manual_seed(12)
    before = settings_now()
    with pytest.raises(RuntimeError, match="no luck"):
        execute(run_of(tiny()), tmp_path, progress=fail)
    assert settings_now() == before


# --- runs that are the same -------------------------------------------------------------------------------------------


def test_arms_whose_runs_are_the_same_train_them_once(tiny: Make, tmp_path: Path) -> None:
    trained: list[str] = []

    def note(job: Job, progress: Progress) -> None:
        trained.append(job.name)
        train_job(job, progress)

    # How long a worker may be silent is no part of a run's identity, so two arms that differ in it have the same runs.
    again = {"method": "baseline", "training": {"silent_seconds": 900.0}}
    arms: dict[str, Any] = {"baseline": {}, "again": again, "other": {"method": "qk_norm"}}
    study = tiny(**{**SHORT, "arms": arms})
    findings = study.run(tmp_path / "study", executor=InlineExecutor(note))
    assert len(trained) == len(set(trained))
    ids: dict[str, Sequence[str]] = {
        arm: [run.run_id for run in findings.runs if run.trial.arm == arm and run.trial.round == 0] for arm in arms
    }
    assert ids["again"] == ids["baseline"]
    assert not set(ids["other"]) & set(ids["baseline"])
    assert set(trained) == {run.run_id for run in findings.runs}
    assert all(run.outcome is not None for run in findings.runs)
