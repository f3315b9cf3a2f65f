"""The local executor of submitit, as a trial of the path to Slurm without Slurm."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from trimtab.study.executors.batch.chunk import Chunk
from trimtab.study.executors.batch.queue import Listed
from trimtab.study.executors.batch.submitit_queue import SubmititQueue


class LocalQueue(SubmititQueue):
    """The local executor of submitit: every job is a process of this machine at once."""

    settle_seconds = 0.2
    query_seconds = 0.3
    retry_seconds = 1.0
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
                for number in _family(int(job_id)):
                    _kill(number)


def _controllers(logs: Path) -> set[str]:
    """The ids of the live controllers that write into this folder, or of the shells that run their set-up first."""
    found: set[str] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_text()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if "submitit.local._local" in command and f"{logs}/" in command and state != "Z":
            found.add(entry.name)
    return found


def _family(first: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    family = [first]
    for member in family:
        family += [number for number, parent in parents.items() if parent == member]
    return family


def _kill(number: int) -> None:
    try:
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
