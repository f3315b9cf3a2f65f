"""What a job of a batch system does: several runs, one after the other, with notes to the driver in files.

A driver and its jobs share no memory and no connection. They meet in the *desk*, a folder beside the runs:

- ``claims/<run id>`` names the submission that may write the run. A worker whose submission is not named there stops,
  so a job that was given up cannot disturb the next attempt, even if it was suspended for hours.
- ``mail/<token>.<run id>.json`` holds the last news of a run from its worker.

The folder of a run and its outcome stay the truth; the notes only say when to look.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.run.files import IntegrityError, read_sealed, write_sealed
from trimtab.run.folder import NotOwnedError
from trimtab.study.executors.contract import FINAL, Claim, Job, JobReport, Task, failure

DESK = "jobs"
CLAIMS = "claims"
MAIL = "mail"


@dataclass(frozen=True, slots=True)
class Chunk:
    """The runs of one submission.

    Attributes:
        token: unique name of the submission.
        jobs: the runs, in order.
        desk: the folder in which driver and workers meet.
        task: the function that trains a run.
        passing: errors that the batch system raises inside the task to end the job; they end it, and no run has failed.
    """

    token: str
    jobs: tuple[Job, ...]
    desk: Path
    task: Task
    passing: tuple[type[Exception], ...] = ()

    def __call__(self) -> None:
        """Carry out the runs. A job that the batch system starts again skips the runs that ended before."""
        for job in self.jobs:
            claim = claim_of(self.desk, self.token, job.name)
            if claim.held() and not _has_ended(self.desk, self.token, job.name):
                self._carry_out(replace(job, claim=claim))

    def _carry_out(self, job: Job) -> None:
        post(self.desk, self.token, JobReport(job.name, "started"))
        try:
            self.task(job, lambda step, loss: None)  # the heartbeat file shows the progress
            report = JobReport(job.name, "done")
        except (*self.passing, NotOwnedError) as error:
            if isinstance(error, NotOwnedError):
                return
            raise
        except Exception as error:  # an error of user code ends the run, not the job
            report = failure(job, error)
        post(self.desk, self.token, report)


def claim_of(desk: Path, token: str, name: str) -> Claim:
    """The claim of a submission to a run."""
    return Claim(desk / CLAIMS / name, token)


def make_desk(desk: Path) -> None:
    """Create the folders of the desk."""
    for name in (CLAIMS, MAIL):
        (desk / name).mkdir(parents=True, exist_ok=True)


def give(claim: Claim) -> None:
    """Name the submission that may write a run; any other must stop.

    The file is neither synchronised nor replaced atomically: the new owner starts later, and whoever reads a part of it
    is not the owner.
    """
    claim.file.write_text(claim.token, encoding="utf-8")


def release(claim: Claim) -> None:
    """No submission may write the run any more, if this one could."""
    if claim.held():
        claim.file.unlink(missing_ok=True)


def post(desk: Path, token: str, report: JobReport) -> None:
    """Write the last news of a run."""
    write_sealed(_note(desk, token, report.name), asdict(report))


def letters(desk: Path) -> Iterator[tuple[str, JobReport]]:
    """The last news of every run with its submission's token. A letter that is just being written is left for later."""
    for file in sorted((desk / MAIL).glob("*.json")):
        token, _, name = file.stem.partition(".")
        try:
            record: dict[str, Any] = read_sealed(file, "delete it") | {"name": name}
            yield token, JobReport(**record)
        except (OSError, IntegrityError, TypeError):
            continue


def discard(desk: Path, token: str, name: str) -> None:
    """Delete the news of a run."""
    _note(desk, token, name).unlink(missing_ok=True)


def _has_ended(desk: Path, token: str, name: str) -> bool:
    file = _note(desk, token, name)
    return file.exists() and read_sealed(file, "delete it")["kind"] in FINAL


def _note(desk: Path, token: str, name: str) -> Path:
    return desk / MAIL / f"{token}.{name}.json"
