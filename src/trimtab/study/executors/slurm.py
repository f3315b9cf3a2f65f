"""Carry out runs as jobs of Slurm, submitted through submitit (extra ``slurm``)."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, final

from typing_extensions import override

from trimtab.config import ConfigError, Settings
from trimtab.study.executors.batch.chunk import DESK
from trimtab.study.executors.batch.executor import BatchExecutor
from trimtab.study.executors.batch.local_queue import LocalQueue
from trimtab.study.executors.batch.queue import Queue
from trimtab.study.executors.batch.slurm_queue import SlurmQueue
from trimtab.study.executors.contract import ExecutorConfig, Task, train_job
from trimtab.study.specification import StudySpec

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
        retry_seconds: how long a submission waits after Slurm refused it because of a limit.
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
    retry_seconds: float = 30.0
    cluster: Literal["slurm", "local"] = "slurm"

    def __post_init__(self) -> None:
        for name in ("time_minutes", "runs_per_job", "in_flight", "query_seconds", "retry_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name, least in (("cpus", 0), ("gpus", -1), ("memory_gb", 0), ("settle_seconds", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    @override
    def trains_here(self) -> bool:
        return self.cluster == "local"

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
            queue = LocalQueue(logs, lambda place: self._local(place, device))
        else:
            if shutil.which("srun") is None or shutil.which("sbatch") is None:
                raise ConfigError(
                    "executor slurm: srun and sbatch are not found; run the command on a machine that can submit jobs, "
                    "or try it here with --option cluster=local"
                )
            queue = SlurmQueue(logs, lambda place: self._slurm(place, threads, device), self)
        return BatchExecutor(queue, folder, in_flight=in_flight, runs_per_job=self.runs_per_job, task=task)

    def gpus_on(self, device: str) -> int:
        """GPUs of a job whose runs train on this device."""
        return self.gpus if self.gpus >= 0 else int(device == "cuda")

    def _local(self, logs: Path, device: str) -> Any:
        import submitit

        executor = submitit.LocalExecutor(logs / "%j", max_num_timeout=0, python=self.python or None)
        executor.update_parameters(
            name="trimtab", timeout_min=self.time_minutes, gpus_per_node=self.gpus_on(device), setup=[*self.setup]
        )
        return executor

    def _slurm(self, logs: Path, threads: int, device: str) -> Any:
        import submitit

        executor = submitit.SlurmExecutor(logs / "%j", max_num_timeout=0, python=self.python or None)
        asked: dict[str, Any] = {
            "time": self.time_minutes,
            "cpus_per_task": self.cpus or threads,
            "gpus_per_node": self.gpus_on(device) or None,
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
