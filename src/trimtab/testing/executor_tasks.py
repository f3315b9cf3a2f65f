"""What the contract of executors has them carry out: a job's name says what it does, in any process."""

from __future__ import annotations

import errno
import os
import time

from trimtab.data.zipf_markov import ZipfMarkov
from trimtab.models.gpt import GPTConfig
from trimtab.run.spec import RunSpec, TrainingProtocol
from trimtab.study.executors.contract import Job, Progress

WRITTEN = "written"
BEATS = "beats"
BEAT_SECONDS = 0.05
PROGRESS = ((7, 1.25), (11, 1.5))
PROGRESS_SECONDS = 0.7  # between two calls; an executor may pass on fewer than all
REFUSED = {"full": errno.ENOSPC, "read_only": errno.EROFS, "too_many_files": errno.EMFILE}
LAST_BEAT = 600.0  # a job that its executor never stops ends by itself after so many seconds


def job_spec() -> RunSpec:
    """The specification of every job; no task trains it."""
    data = ZipfMarkov()
    return RunSpec(protocol=TrainingProtocol(model=GPTConfig(vocab_size=data.vocab_size), data=data))


def perform(job: Job, progress: Progress) -> None:
    """Do what the part of the job's name before the first hyphen says."""
    _TASKS[job.name.partition("-")[0]](job, progress)


def _write(job: Job, progress: Progress) -> None:
    folder = job.runs / job.name
    folder.mkdir(parents=True)
    (folder / WRITTEN).write_text(job.name, encoding="utf-8")


def _slow(job: Job, progress: Progress) -> None:
    """Two steps, far enough apart for both to be passed on."""
    for step, loss in PROGRESS:
        time.sleep(PROGRESS_SECONDS)
        progress(step, loss)
    _write(job, progress)


def _raise(job: Job, progress: Progress) -> None:
    raise LookupError("no such\nvocabulary")


def _missing(job: Job, progress: Progress) -> None:
    """A file of the user's, which is no fault of the disk."""
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "table.npy")


def _refuse(job: Job, progress: Progress) -> None:
    number = REFUSED[job.name.partition("-")[0]]
    raise OSError(number, os.strerror(number))


def _meet(job: Job, progress: Progress) -> None:
    """Wait for the others: ``meet-INDEX-NUMBER-SECONDS`` is one of a number of jobs and waits so many seconds."""
    _, _, number, seconds = job.name.split("-")
    _write(job, progress)
    deadline = time.monotonic() + float(seconds)
    while len(list(job.runs.glob(f"meet-*/{WRITTEN}"))) < int(number):
        if time.monotonic() > deadline:
            raise TimeoutError("the others did not begin")
        time.sleep(BEAT_SECONDS)


def _beat(job: Job, progress: Progress) -> None:
    """Go on, and show it by a growing file, until somebody stops it."""
    folder = job.runs / job.name
    folder.mkdir(parents=True)
    deadline = time.monotonic() + LAST_BEAT
    while time.monotonic() < deadline:
        with (folder / BEATS).open("a", encoding="utf-8") as file:
            file.write("x")
        time.sleep(BEAT_SECONDS)


_TASKS = {
    "write": _write,
    "slow": _slow,
    "raise": _raise,
    "missing": _missing,
    "meet": _meet,
    "beat": _beat,
    **dict.fromkeys(REFUSED, _refuse),
}
