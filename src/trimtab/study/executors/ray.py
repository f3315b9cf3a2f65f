"""Carry out runs as tasks of Ray (extra ``ray``), on this machine or on a cluster, with or without a shared disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, final

from typing_extensions import override

from trimtab.config import ConfigError
from trimtab.run.files import IntegrityError
from trimtab.run.parcel import Files, packed, receive
from trimtab.study.board import Board
from trimtab.study.executors.batch.chunk import DESK, claim_of, give, make_desk, release
from trimtab.study.executors.contract import LOADABLE, ExecutorConfig, Job, JobReport, Task, failure, train_job
from trimtab.study.specification import StudySpec

NOTE_SECONDS = 0.5  # between two notes of a worker
ASK_SECONDS = 0.25  # between two questions of the driver
BOARD_SECONDS = 20.0  # the start of a process of Ray on a busy machine


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Ray(ExecutorConfig):
    """Runs as tasks of Ray Core.

    Attributes:
        address: address of a cluster, or ``auto``; "" starts Ray on this machine.
        cpus: CPUs that Ray reserves for a run; 0 takes the threads of a run.
        gpus: GPUs that Ray reserves for a run, which may be a fraction; -1 takes one if the study trains on CUDA,
            otherwise none.
        in_flight: number of runs that wait or run in Ray. An autoscaler counts waiting tasks.

    Raises:
        ValueError: if a number is out of its range.
    """

    address: str = ""
    cpus: float = 0.0
    gpus: float = -1.0
    in_flight: int = 1000

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, got {self.in_flight}")
        if self.cpus < 0 or (self.gpus < 0 and self.gpus != -1):
            raise ValueError("cpus and gpus must not be negative")

    @property
    @override
    def trains_here(self) -> bool:
        return not self.address

    @override
    def start(self, spec: StudySpec, folder: Path) -> RayExecutor:
        training = spec.protocol.training
        gpus = self.gpus if self.gpus >= 0 else float(training.device == "cuda")
        return RayExecutor(folder, self.address, self.cpus or training.threads, gpus, self.in_flight)


class RayExecutor:
    """Submits tasks to Ray.

    A worker that sees the study folder writes there. Otherwise it writes into a temporary folder, and the files of the
    finished run come back with their hashes.

    Args:
        folder: the study folder.
        address: address of a cluster; "" starts Ray on this machine.
        cpus, gpus: what Ray reserves for a task.
        in_flight: number of unfinished tasks.
        task: the function that trains a run.

    Raises:
        ConfigError: if ray is not installed.
    """

    def __init__(
        self,
        folder: Path,
        address: str = "",
        cpus: float = 1.0,
        gpus: float = 0.0,
        in_flight: int = 1000,
        task: Task = train_job,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise ConfigError("executor ray: ray is missing; install trimtab[ray]") from None
        self.ray: Any = ray  # its decorator and its exceptions are only partly typed
        self.folder = folder.resolve()
        self.address = address
        self.resources = {"num_cpus": cpus, "num_gpus": gpus}
        self.capacity = in_flight
        self.task = task
        self.token = uuid.uuid4().hex
        self.jobs: dict[Any, Job] = {}
        self.dropped: set[str] = set()
        self.news: list[JobReport] = []
        self.asked_at = 0.0
        self.asked: Any = None  # the call to the board that is not yet answered
        self.started_ray = False
        self.remote: Any = None
        self.board: Any = None

    def submit(self, job: Job) -> None:
        """Submit a task; Ray decides when and where it runs."""
        # A worker of a driver that was killed may live some seconds longer; without its claim it stops writing.
        claim = claim_of(self.folder / DESK, self.token, job.name)
        give(claim)
        ref = self.remote.remote(self.task, replace(job, claim=claim), self._mark, self.token, self.board)
        self.jobs[ref] = job
        self.news.append(JobReport(job.name, "queued"))

    def poll(self, timeout: float) -> list[JobReport]:
        """The ends of tasks and the progress of others; waits for the first end."""
        reports, self.news = self.news, []
        if not self.jobs:
            return reports
        refs = list(self.jobs)
        # The first call waits for one task, the second collects what else has ended.
        done, _ = self.ray.wait(refs, num_returns=1, timeout=0.0 if reports else timeout)
        if done:
            done, _ = self.ray.wait(refs, num_returns=len(refs), timeout=0.0)
        for ref in done:
            reports.append(self._end_of(ref))
        return reports + self._progress()

    def drop(self, name: str) -> None:
        """Kill the worker of a run."""
        for ref, job in self.jobs.items():
            if job.name == name:
                self.dropped.add(name)
                self.ray.cancel(ref, force=True)

    def cancel(self) -> None:
        """Kill every task."""
        self.news.clear()
        for ref in self.jobs:
            self.ray.cancel(ref, force=True)
        for job in self.jobs.values():
            release(claim_of(self.folder / DESK, self.token, job.name))
        if self.jobs:
            self.ray.wait(list(self.jobs), num_returns=len(self.jobs), timeout=10.0)
        self.jobs.clear()

    def __enter__(self) -> RayExecutor:
        make_desk(self.folder / DESK)
        self._mark.write_text(self.token, encoding="utf-8")
        _check_home()
        # Ray's own retries are off, those after exhausted memory too: the study counts attempts itself.
        options: dict[str, Any] = {"num_cpus": os.cpu_count(), "_system_config": {"task_oom_retries": 0}}
        if self.address:  # the system of a cluster is configured by those who start it
            options = {"address": self.address}
        try:
            if not self.ray.is_initialized():
                self.ray.init(**options, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
                self.started_ray = True
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"executor ray: cannot start or reach Ray: {' '.join(str(error).split())}") from error
        self.remote = self.ray.remote(**self.resources, max_retries=0, max_calls=0)(_carry_out)
        self.board = self.ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
        # A run that is shorter than the start of the board would end without progress. A board that does not start
        # in time costs the display of progress only.
        self._ask()
        self.ray.wait([self.asked], timeout=BOARD_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.cancel()
            if self.started_ray:
                self.ray.shutdown()
            else:
                self.ray.kill(self.board)
        finally:
            self._mark.unlink(missing_ok=True)

    @property
    def _mark(self) -> Path:
        """A file by which a worker knows that it sees the study folder."""
        return self.folder / DESK / f"ray-{self.token}"

    def _end_of(self, ref: Any) -> JobReport:
        job = self.jobs.pop(ref)
        release(claim_of(self.folder / DESK, self.token, job.name))
        try:
            report, files = self.ray.get(ref)
        except Exception as error:
            return self._death(job, error)
        if files is not None and report.kind == "done":
            try:
                receive(files, job.runs / job.name)
            except (OSError, IntegrityError) as error:
                return failure(job, error)
        return report

    def _death(self, job: Job, error: Exception) -> JobReport:
        """The report on a task that ended without a result."""
        dropped = job.name in self.dropped
        self.dropped.discard(job.name)
        text = "it made no progress and was cancelled" if dropped else " ".join(str(error).split())[:300]
        errors = self.ray.exceptions
        if isinstance(error, errors.RuntimeEnvSetupError | errors.TaskUnschedulableError):
            return JobReport(job.name, "unusable", message=text)
        if isinstance(error, errors.RayTaskError):  # the task itself catches errors: it could not be loaded
            cause = " ".join(str(getattr(error, "cause", error)).split())
            return JobReport(job.name, "unusable", message=f"{cause}; {LOADABLE}")
        return JobReport(job.name, "killed", message=f"{type(error).__name__}: {text}")

    def _progress(self) -> list[JobReport]:
        """What the board has answered since the last call. Nobody waits for an answer: one that came after a time limit
        would be lost, with the progress in it.
        """
        if self.asked is None:
            if time.monotonic() - self.asked_at >= ASK_SECONDS:
                self._ask()
            return []
        answered, _ = self.ray.wait([self.asked], timeout=0.0)
        if not answered:
            return []
        asked, self.asked = self.asked, None
        try:
            beats: Mapping[str, tuple[int, float]] = self.ray.get(asked)
        except Exception:  # the board is lost with its node; Ray starts it again
            return []
        active = {job.name for job in self.jobs.values()}
        return [JobReport(name, "progress", step, loss) for name, (step, loss) in beats.items() if name in active]

    def _ask(self) -> None:
        self.asked = self.board.take.remote()
        self.asked_at = time.monotonic()


def _carry_out(task: Task, job: Job, mark: Path, token: str, board: Any) -> tuple[JobReport, Files | None]:
    """Train one run in a worker; returns its report, and its files if the study folder is not seen here."""
    last = time.monotonic()

    def progress(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last >= NOTE_SECONDS:
            last = time.monotonic()
            board.note.remote(job.name, step, loss)

    shared = mark.is_file() and mark.read_text(encoding="utf-8") == token
    runs = job.runs if shared else Path(tempfile.mkdtemp(prefix="trimtab-"))
    try:
        # Without a shared disk nobody else can write the folder, and the claim is not seen.
        task(job if shared else replace(job, runs=runs, claim=None), progress)
        return JobReport(job.name, "done"), None if shared else packed(runs / job.name)
    except Exception as error:  # an error of user code ends the run
        return failure(job, error), None
    finally:
        if not shared:
            shutil.rmtree(runs, ignore_errors=True)


def _check_home() -> None:
    """Refuse a home folder that cannot be written: Ray keeps its authentication token there.

    Raises:
        ConfigError: naming the folder and the remedy.
    """
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.environ.get("RAY_AUTH_TOKEN")
    folder = Path.home() / ".ray"
    if token is None and not os.access(folder if folder.exists() else folder.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"executor ray: {folder} cannot be written, where Ray keeps its token; set HOME to a folder "
                          "that can be written")  # fmt: skip
