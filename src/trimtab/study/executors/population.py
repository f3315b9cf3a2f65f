"""Carry out the runs of an arm together, as one stacked model in this process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import final

from typing_extensions import override

from trimtab.config import ConfigError, canonical
from trimtab.run.carry_out import carry_out, carry_out_together
from trimtab.run.identity import settled
from trimtab.run.spec import RunSpec, Seeds
from trimtab.study.executors.contract import ExecutorConfig, Job, JobReport, failure
from trimtab.study.specification import StudySpec


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Population(ExecutorConfig):
    """Runs of one arm as one stacked model in this process; needs ``training.population = true``.

    Attributes:
        size: largest number of runs in a stack.

    Raises:
        ValueError: if size is not positive.
    """

    size: int = 64

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")

    @override
    def start(self, spec: StudySpec, folder: Path) -> PopulationExecutor:
        for name, arm in spec.arms.items():
            if not arm.protocol.training.population:
                raise ConfigError(
                    f"arms.{name}: executor population needs training.population = true, which is part of a run's id, "
                    "since a stack rounds otherwise; add --set training.population=true"
                )
        return PopulationExecutor(self.size)


class PopulationExecutor:
    """Trains a group of waiting jobs of one arm inside ``poll``."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.capacity = 10_000  # all runs of a round, so that those of one arm meet
        self.waiting: dict[str, list[Job]] = {}

    def submit(self, job: Job) -> None:
        """Keep the job with others of its structure."""
        self.waiting.setdefault(structure_of(job.spec), []).append(job)

    def poll(self, timeout: float) -> list[JobReport]:
        """Carry out one group; returns the ends of its jobs. A group that fails is carried out one by one."""
        if not self.waiting:
            return []
        key = next(iter(self.waiting))
        jobs, rest = self.waiting[key][: self.size], self.waiting[key][self.size :]
        if rest:
            self.waiting[key] = rest
        else:
            del self.waiting[key]
        try:
            carry_out_together([job.spec for job in jobs], [job.name for job in jobs], jobs[0].runs)
        except Exception as error:
            if len(jobs) == 1:
                return [failure(jobs[0], error)]
            return [self._alone(job) for job in jobs]
        return [JobReport(job.name, "done") for job in jobs]

    def _alone(self, job: Job) -> JobReport:
        try:
            carry_out(job.spec, job.runs, expected=job.name)
        except Exception as error:
            return failure(job, error)
        return JobReport(job.name, "done")

    def drop(self, name: str) -> None:
        """Do nothing: a job always ends inside ``poll``."""

    def cancel(self) -> None:
        """Discard the waiting jobs."""
        self.waiting.clear()

    def __enter__(self) -> PopulationExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


def structure_of(spec: RunSpec) -> str:
    """What runs of one stack have in common: everything but LR and seeds."""
    plain = replace(spec, learning_rate=1.0, seeds=Seeds.all_equal(0), repeat=0)
    return f"{canonical(settled(plain))} {spec.code}"
