"""The state of a study, read from its folder while a driver may be at work. Nothing is written."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from trimtab.run.heartbeat import load_beat
from trimtab.study.executors.batch.chunk import DESK
from trimtab.study.executors.batch.executor import QUEUE
from trimtab.study.failures import Failures
from trimtab.study.index import INDEX, load_index
from trimtab.study.kind import Evidence, Findings, Standing, kind_of
from trimtab.study.lease import read_driver
from trimtab.study.lock import is_driven
from trimtab.study.specification import StudySpec
from trimtab.study.stored import load_stored
from trimtab.study.trial import Trial

AT_WORK_SECONDS = 60.0  # a run whose heartbeat is older counts as waiting


@dataclass(frozen=True, slots=True)
class RunAtWork:
    """A run that is being trained; ``seconds_since`` is the age of its last sign of progress."""

    run_id: str
    trial: str
    step: int
    steps: int
    loss: float | None
    seconds_since: float


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A run that failed or was killed at least once and has no outcome."""

    run_id: str
    trial: str
    cause: str
    attempts: int
    kills: int
    given_up: bool


@dataclass(frozen=True, slots=True)
class DriverStatus:
    """The process that drives the study; ``since`` is its start in seconds of Unix time."""

    host: str
    pid: int
    executor: Mapping[str, Any]
    capacity: int
    round: str
    since: float


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The batch system: number of jobs for each reason to wait, and its last refusal."""

    waiting: Mapping[str, int]
    refusal: str


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """The state of a study.

    Attributes:
        state: ``running``: a driver is at work; ``finished``; ``stopped``: neither.
        most_runs: an upper bound on the runs of the whole study.
        finished, running, waiting, given_up: number of runs that the study has asked for so far, by state.
        round_seconds_left: estimated time until the runs asked for so far are finished; None before a run is finished.
        most_seconds_left: estimated upper bound on the time until the whole study is finished.
        standings: the answers so far.
    """

    folder: str
    name: str
    kind: str
    state: Literal["running", "finished", "stopped"]
    driver: DriverStatus | None
    most_runs: int
    finished: int
    running: int
    waiting: int
    given_up: int
    round_seconds_left: float | None
    most_seconds_left: float | None
    at_work: Sequence[RunAtWork]
    failures: Sequence[FailedRun]
    queue: QueueStatus | None
    standings: Sequence[Standing]


def status_of(folder: Path) -> tuple[StudyStatus, Findings]:
    """The state of a study folder and its findings so far.

    Raises:
        ConfigError: if the folder holds no study.
        IntegrityError: if a stored file is damaged.
    """
    stored = load_stored(folder)
    spec, evidence = stored.spec, stored.evidence
    findings = stored.findings()
    driver = read_driver(folder)
    driven = is_driven(folder)
    asked = load_index(folder).runs if (folder / INDEX).is_file() else dict(evidence.run_ids)
    at_work = _at_work(folder, spec, {name: trial for trial, name in asked.items()}, evidence) if driven else []
    outcomes = {evidence.run_ids[t]: outcome for t, outcome in evidence.results.items() if outcome is not None}
    given_up = len(evidence.errors)
    pending = len(set(asked.values())) - len(outcomes) - given_up
    seconds = [outcome.seconds for outcome in outcomes.values() if outcome.seconds > 0]
    at_once = max(1, len(at_work) or (driver.capacity if driver is not None else 1))
    left = statistics.fmean(seconds) / at_once if seconds else math.nan
    more = max(pending, spec.most_runs() - len(outcomes))
    status = StudyStatus(
        folder=str(folder),
        name=spec.name,
        kind=spec.kind,
        state="running" if driven else "finished" if evidence.complete else "stopped",
        driver=None
        if driver is None or not driven
        else DriverStatus(driver.host, driver.pid, driver.executor, driver.capacity, driver.round, driver.since),
        most_runs=spec.most_runs(),
        finished=len(outcomes),
        running=len(at_work),
        waiting=pending - len(at_work),
        given_up=given_up,
        round_seconds_left=pending * left if seconds else None,
        most_seconds_left=(0.0 if evidence.complete else more * left) if seconds else None,
        at_work=at_work,
        failures=_failures(folder, {name: trial for trial, name in asked.items()}),
        queue=_queue(folder),
        standings=kind_of(spec).standings(findings),
    )
    return status, findings


def _at_work(folder: Path, spec: StudySpec, trials: Mapping[str, Trial], evidence: Evidence) -> list[RunAtWork]:
    done = {*evidence.run_ids.values()}
    now = time.time()
    rows: list[RunAtWork] = []
    for name, trial in trials.items():
        beat = None if name in done else load_beat(folder / "runs" / name)
        if beat is None or trial.arm not in spec.arms or now - beat.time > AT_WORK_SECONDS:
            continue
        loss = beat.loss if math.isfinite(beat.loss) else None
        steps = spec.arms[trial.arm].protocol.training.steps
        rows.append(RunAtWork(name, trial.title, beat.step, steps, loss, max(0.0, now - beat.time)))
    return rows


def _failures(folder: Path, trials: Mapping[str, Trial]) -> list[FailedRun]:
    return [
        FailedRun(name, trials[name].title, failure.error, failure.attempts, failure.kills, failure.given_up)
        for name, failure in Failures(folder).by_run.items()
        if name in trials
    ]


def _queue(folder: Path) -> QueueStatus | None:
    try:
        record = cast("dict[str, Any]", json.loads((folder / DESK / QUEUE).read_text(encoding="utf-8")))
        reasons = Counter(reason or state for _, state, reason in record["jobs"].values() if state == "waiting")
        return QueueStatus(dict(reasons), str(record["refusal"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
