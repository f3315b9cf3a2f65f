"""A pool of worker processes, which live as long as the study."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import cast, final

import torch
from typing_extensions import override

from trimtab.config import ConfigError
from trimtab.study import fork_server
from trimtab.study.executors.contract import LOADABLE, ExecutorConfig, Job, JobReport, Task, failure, train_job
from trimtab.study.specification import StudySpec

PROGRESS_SECONDS = 0.5
UNKNOWN = 255  # the exit code that multiprocessing gives a process whose fork server has ended


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Processes(ExecutorConfig):
    """A pool of processes on this machine, on Linux forked from a process that has imported torch once.

    Attributes:
        workers: number of processes; 0 takes one per ``training.threads`` cores, or on CUDA ``per_gpu`` per device.
        per_gpu: processes for each CUDA device.

    Raises:
        ValueError: if a number is out of its range.
    """

    workers: int = 0
    per_gpu: int = 1

    def __post_init__(self) -> None:
        if self.workers < 0 or self.per_gpu < 1:
            raise ValueError("workers must not be negative, and per_gpu must be at least 1")

    @override
    def start(self, spec: StudySpec, folder: Path) -> ProcessExecutor:
        try:
            pickle.dumps(spec)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"the study cannot be sent to a worker ({error}); define its functions at the top of a module, "
                "or use workers=0"
            ) from error
        training = spec.protocol.training
        if training.device == "cuda":
            devices = tuple(str(index) for index in range(torch.cuda.device_count()))
            return ProcessExecutor(self.workers or max(1, len(devices)) * self.per_gpu, devices=devices)
        return ProcessExecutor(self.workers or max(1, (os.cpu_count() or 1) // training.threads))


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    place: int  # index in the pool; a replacement takes the place, and so the device, of the worker that ended
    job: Job | None = None


class ProcessExecutor:
    """A pool of workers with one job each at a time. On CUDA, workers are assigned to devices in turn.

    Args:
        num_workers: number of processes. Each uses the number of threads that its run specifies.
        devices: ``CUDA_VISIBLE_DEVICES`` of the workers in turn; empty leaves the variable unchanged.
        task: the function that a worker calls with a job.

    Raises:
        ValueError: if num_workers is not positive.
    """

    def __init__(self, num_workers: int, *, devices: tuple[str, ...] = (), task: Task = train_job) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}")
        self.capacity = num_workers
        self.devices = devices
        self.task = task
        self.workers: list[_Worker] = []
        self.stillborn = 0
        self.context = fork_server.context()

    def submit(self, job: Job) -> None:
        """Send the job to a free worker, or start a worker if none is free."""
        worker = next((w for w in self.workers if w.job is None), None) or self._start()
        worker.job = job
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.pipe.send(
                (job.name, pickle.dumps(job))
            )  # if the worker died while idle, poll reports the job as killed

    def poll(self, timeout: float) -> list[JobReport]:
        """The reports of all workers. The job of a dead worker is reported as killed, and its place becomes free."""
        busy = [worker for worker in self.workers if worker.job is not None]
        waiting = [worker.pipe for worker in busy] + [worker.process.sentinel for worker in busy]
        connection.wait(waiting, timeout)
        reports: list[JobReport] = []
        for worker in busy:
            reports += self._news_of(worker)
        return reports

    def drop(self, name: str) -> None:
        """Kill the worker of a job with SIGKILL, which also ends a stopped worker."""
        for worker in self.workers:
            if worker.job is not None and worker.job.name == name:
                worker.process.kill()

    def cancel(self) -> None:
        """Kill every worker."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.pipe.close()
        self.workers.clear()

    def __enter__(self) -> ProcessExecutor:
        fork_server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _news_of(self, worker: _Worker) -> list[JobReport]:
        reports: list[JobReport] = []
        # Checked once, before the pipe is read: a worker that dies in between is reported by the next call.
        alive = worker.process.is_alive()
        with contextlib.suppress(EOFError, ConnectionResetError, OSError):
            while worker.pipe.poll():
                report = worker.pipe.recv()
                reports.append(report)
                self.stillborn = 0
                if report.kind != "progress":
                    worker.job = None
        if worker.job is not None and not alive:
            code = worker.process.exitcode
            # Exit code 1 before any report, twice: the worker cannot start, as in a script without a main guard.
            self.stillborn = self.stillborn + 1 if code == 1 else 0
            kind = "unusable" if self.stillborn >= 2 else "killed"
            remedy = f"; {LOADABLE}" if kind == "unusable" else ""
            reports.append(JobReport(worker.job.name, kind, message=f"its worker ended with exit code {code}{remedy}"))
            worker.job = None
        if not alive:
            _end(worker)
            worker.pipe.close()
            self.workers.remove(worker)
        return reports

    def _start(self) -> _Worker:
        taken = {worker.place for worker in self.workers}
        place = next(number for number in itertools.count() if number not in taken)
        device = self.devices[place % len(self.devices)] if self.devices else None
        ours, theirs = self.context.Pipe()
        environment = dict(os.environ)  # of today: the server has that of the time when it started
        process = self.context.Process(target=_work, args=(theirs, self.task, environment, device), daemon=True)
        fork_server.launch(process)
        theirs.close()
        worker = _Worker(process, cast(Connection, ours), place)
        self.workers.append(worker)
        return worker


def _end(worker: _Worker) -> None:
    """Kill a worker of which only the fork server knew whether it lives, and the server has ended."""
    if worker.process.exitcode == UNKNOWN and worker.process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.process.pid, signal.SIGKILL)


def _work(pipe: Connection, task: Task, environment: dict[str, str], device: str | None) -> None:
    """The main loop of a worker: receive jobs and send reports. The worker ends when the driver ends for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    threading.Thread(target=_end_with_driver, daemon=True).start()
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            name, pickled = pipe.recv()
            try:
                job: Job = pickle.loads(pickled)
            except Exception as error:  # for example, another process cannot import a function of a notebook
                pipe.send(JobReport(name, "unusable", message=f"{type(error).__name__}: {error}; {LOADABLE}"))
                continue
            _carry_out(pipe, task, job)


def _carry_out(pipe: Connection, task: Task, job: Job) -> None:
    last = time.monotonic()

    def progress(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            pipe.send(JobReport(job.name, "progress", step, loss))

    try:
        task(job, progress)
        pipe.send(JobReport(job.name, "done"))
    except Exception as error:  # an error of user code ends the job, not the worker
        pipe.send(failure(job, error))


def _end_with_driver() -> None:
    driver = multiprocessing.parent_process()
    starter = os.getppid()  # the driver, or its fork server
    while driver is not None and driver.is_alive() and os.getppid() == starter:
        driver.join(0.5)
    os._exit(1)
