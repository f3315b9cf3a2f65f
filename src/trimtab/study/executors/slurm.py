"""Carry out runs as jobs of Slurm, submitted through submitit (extra ``slurm``)."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, final

from typing_extensions import override

from trimtab.config import ConfigError, Settings
from trimtab.study.executors.batch import BatchExecutor, Listed, Queue, RefusedError
from trimtab.study.executors.chunk import DESK, Chunk
from trimtab.study.executors.contract import ExecutorConfig, Task, train_job
from trimtab.study.specification import StudySpec

WAITING = (
    "PENDING", "CONFIGURING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD",
    "SPECIAL_EXIT", "RESIZING",
)  # fmt: skip
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT")
# Words of refusals that pass: a limit is reached, or the controller is busy or restarts.
PASSING = ("limit", "temporarily", "timed out", "unable to contact", "try again", "connection refused", "zero bytes")
COMMAND_SECONDS = 120.0
LOGS = "logs"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Slurm(ExecutorConfig):
    """Runs as jobs of Slurm. The study folder must be on a file system that all nodes see.

    Attributes:
        partition, account, qos, constraint: as in sbatch; "" leaves the choice to Slurm.
        time_minutes: time limit of a job, in minutes.
        runs_per_job: number of runs that a job carries out one after the other. Many short runs in one job spare the
            scheduler.
        in_flight: number of runs that wait or run in Slurm.
        cpus: CPUs of a job; 0 takes the threads of a run.
        gpus: GPUs of a job; -1 takes one if the study trains on CUDA, otherwise none.
        memory_gb: memory of a job, in GB; 0 leaves the choice to Slurm.
        setup: lines of shell that a job runs first, such as ``module load cuda``.
        srun: further arguments of srun, such as ``--container-image=...``.
        sbatch: further options of sbatch, such as ``{ "container-image" = "..." }``.
        python: the command that starts Python on a node; "" takes this interpreter.
        settle_seconds: how long a job must not be listed before it counts as ended.
        query_seconds: time between two calls of squeue.
        cluster: ``slurm``; or ``local``, which starts the jobs on this machine, as a trial of the same path.

    Raises:
        ValueError: if a number is out of its range.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time_minutes: int = 240
    runs_per_job: int = 1
    in_flight: int = 256
    cpus: int = 0
    gpus: int = -1
    memory_gb: float = 0.0
    setup: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    sbatch: Settings = field(default_factory=Settings)
    python: str = ""
    settle_seconds: float = 60.0
    query_seconds: float = 15.0
    cluster: Literal["slurm", "local"] = "slurm"

    def __post_init__(self) -> None:
        for name in ("time_minutes", "runs_per_job", "in_flight", "query_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name, least in (("cpus", 0), ("gpus", -1), ("memory_gb", 0), ("settle_seconds", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @override
    def start(self, spec: StudySpec, folder: Path) -> BatchExecutor:
        return self.executor(folder, spec.protocol.training.threads, spec.protocol.training.device)

    def executor(self, folder: Path, threads: int, device: str, task: Task = train_job) -> BatchExecutor:
        """An executor for runs that use so many threads and this device.

        Raises:
            ConfigError: if submitit is not installed, or this machine has no Slurm. Nothing was written.
        """
        if find_spec("submitit") is None:
            raise ConfigError("executor slurm: submitit is missing; install trimtab[slurm]")
        logs = folder.resolve() / DESK / LOGS
        in_flight = self.in_flight
        queue: Queue
        if self.cluster == "local":
            in_flight = min(in_flight, self.runs_per_job * max(1, (os.cpu_count() or 1) // threads))
            queue = LocalQueue(logs, self._local)
        else:
            if shutil.which("srun") is None or shutil.which("sbatch") is None:
                raise ConfigError(
                    "executor slurm: srun and sbatch are not found; run the command on a machine that can submit jobs, "
                    "or try it here with --option cluster=local"
                )
            queue = SlurmQueue(
                logs, lambda place: self._slurm(place, threads, device), self.settle_seconds, self.query_seconds
            )
        return BatchExecutor(queue, folder, in_flight=in_flight, runs_per_job=self.runs_per_job, task=task)

    def _local(self, logs: Path) -> Any:
        import submitit

        executor = submitit.LocalExecutor(logs / "%j", max_num_timeout=0, python=self.python or None)
        executor.update_parameters(
            name="trimtab", timeout_min=self.time_minutes, gpus_per_node=max(0, self.gpus), setup=[*self.setup]
        )
        return executor

    def _slurm(self, logs: Path, threads: int, device: str) -> Any:
        import submitit

        executor = submitit.SlurmExecutor(logs / "%j", max_num_timeout=0, python=self.python or None)
        gpus = self.gpus if self.gpus >= 0 else int(device == "cuda")
        asked: dict[str, Any] = {
            "time": self.time_minutes,
            "cpus_per_task": self.cpus or threads,
            "gpus_per_node": gpus or None,
            "mem": f"{int(self.memory_gb * 1024)}MB" if self.memory_gb else None,
            "partition": self.partition or None,
            "account": self.account or None,
            "qos": self.qos or None,
            "constraint": self.constraint or None,
            "setup": [f"export OMP_NUM_THREADS={threads}", *self.setup],
            "srun_args": list(self.srun) or None,
            "additional_parameters": dict(self.sbatch) or None,
        }
        executor.update_parameters(**{name: value for name, value in asked.items() if value is not None})
        executor.parameters["wckey"] = None  # submitit asks for the key "submitit", which many clusters refuse
        return executor


class _Submitit:
    """What both queues share: the executor of submitit, made when it is first used since it creates folders."""

    def __init__(self, logs: Path, make: Callable[[Path], Any]) -> None:
        self.logs = logs
        self.make = make

    @cached_property
    def executor(self) -> Any:
        """The executor of submitit."""
        return self.make(self.logs)

    @property
    def passing(self) -> tuple[type[Exception], ...]:
        """The error by which submitit ends a task at its time limit."""
        from submitit.core.utils import UncompletedJobError

        return (UncompletedJobError,)

    def last_words(self, job_id: str) -> str:
        """The last line of a job's stderr."""
        try:
            file = self.logs / job_id / f"{job_id}_0_log.err"
            return _last_line(file.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return ""


class SlurmQueue(_Submitit):
    """Slurm, through submitit for submissions and squeue for states.

    The states of submitit are not used: they need an accounting database, come up to ten minutes late, and count a
    suspended job as done.
    """

    mail_seconds = 1.0

    def __init__(self, logs: Path, make: Callable[[Path], Any], settle_seconds: float, query_seconds: float) -> None:
        super().__init__(logs, make)
        self.settle_seconds = settle_seconds
        self.query_seconds = query_seconds

    def submit(self, tag: str, chunks: Sequence[Chunk]) -> Sequence[str]:
        """One array of jobs, or one job."""
        self.executor.update_parameters(job_name=tag)
        try:
            with self.executor.batch():
                jobs = [self.executor.submit(chunk) for chunk in chunks]
        except Exception as error:  # submitit wraps what sbatch says in several types
            line = _last_line(str(error))
            raise RefusedError(f"sbatch: {line}", passing=any(word in line.lower() for word in PASSING)) from error
        return [job.job_id for job in jobs]

    def listed(self) -> Mapping[str, Listed] | None:
        """All jobs of the user, also those that ended a short time ago."""
        text = _output(["squeue", "-h", "-r", "-t", "all", "-u", getpass.getuser(), "-o", "%i|%T|%r|%j"])
        if text is None:
            return None
        jobs: dict[str, Listed] = {}
        for line in text.splitlines():
            job_id, state, reason, tag = ([part.strip() for part in line.split("|")] + [""] * 4)[:4]
            if state in RUNNING:
                jobs[job_id] = Listed("running", "", tag)
            elif state in WAITING or not state:
                jobs[job_id] = Listed("waiting", reason if state == "PENDING" else state, tag)
            else:
                jobs[job_id] = Listed("ended", state, tag)
        return jobs

    def cause(self, job_id: str) -> str:
        """From the accounting database if there is one, and the end of the job's stderr."""
        text = _output(["sacct", "-n", "-P", "-X", "-j", job_id, "-o", "State"]) or ""
        state = text.splitlines()[0].strip() if text.strip() else ""
        said = self.last_words(job_id)
        return ": ".join(part for part in (state, said) if part)

    def cancel(self, ids: Sequence[str]) -> None:
        """With scancel."""
        named = [job_id for job_id in ids if job_id]
        for start in range(0, len(named), 200):
            _output(["scancel", *named[start : start + 200]])


class LocalQueue(_Submitit):
    """The local executor of submitit: every job is a process of this machine at once."""

    settle_seconds = 0.2
    query_seconds = 0.3
    mail_seconds = 0.05

    def submit(self, tag: str, chunks: Sequence[Chunk]) -> Sequence[str]:
        """One process for each chunk."""
        return [self.executor.submit(chunk).job_id for chunk in chunks]

    def listed(self) -> Mapping[str, Listed] | None:
        """The controllers of submitit that live."""
        return {number: Listed("running") for number in _controllers(self.logs)}

    def cause(self, job_id: str) -> str:
        """The end of the job's stderr."""
        return self.last_words(job_id)

    def cancel(self, ids: Sequence[str]) -> None:
        """Kill controllers and their processes, and wait for their end."""
        live = _controllers(self.logs)
        for job_id in ids:
            if job_id in live:
                for number in (int(job_id), *_children(int(job_id))):
                    _kill(number)


def _controllers(logs: Path) -> set[str]:
    """The ids of the live controllers that write into this folder."""
    found: set[str] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_text().split("\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if "submitit.local._local" in command and any(word.startswith(str(logs)) for word in command) and state != "Z":
            found.add(entry.name)
    return found


def _children(parent: int) -> list[int]:
    numbers: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                numbers.append(int(entry.name))
        except (OSError, ValueError, IndexError):
            continue
    return numbers


def _kill(number: int) -> None:
    try:
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _output(command: list[str]) -> str | None:
    """What a command prints; None if it fails or does not answer."""
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
