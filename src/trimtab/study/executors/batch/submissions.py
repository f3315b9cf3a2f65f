"""The record of what was submitted to a batch system, which a driver that is started again reads.

A record is written before the batch system is called and completed afterwards. If the driver dies in between, the tag,
which is the name of the jobs in the batch system, finds them, so that they can be cancelled.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trimtab.run.files import IntegrityError, read_sealed, write_sealed

REMEDY = "delete it: its jobs are then submitted again"
PREFIX = "batch-"


@dataclass(slots=True)
class Submission:
    """One job of the batch system.

    Attributes:
        token: unique name.
        names: the run ids of its runs, in order.
        id: its id in the batch system; "" until it is known.
        open: the runs whose end the driver waits for.
        begun: the runs that its worker began.
        state: its last known state in the batch system.
        cause: why it ended, as far as the batch system said.
        gone_since: the time at which it was first not found, in seconds; None while it is found.
        beat: the heartbeat of the run at work at that time.
    """

    token: str
    names: tuple[str, ...]
    id: str = ""
    open: set[str] = field(default_factory=set[str])
    begun: list[str] = field(default_factory=list[str])
    state: str = "waiting"
    cause: str = ""
    gone_since: float | None = None
    beat: float = 0.0

    @property
    def at_work(self) -> str | None:
        """The run that its worker is training, as far as is known."""
        return next((name for name in reversed(self.begun) if name in self.open), None)


@dataclass(slots=True)
class Batch:
    """The jobs of one call of the batch system."""

    tag: str
    submissions: list[Submission]

    @property
    def finished(self) -> bool:
        """Whether nothing is open."""
        return not any(submission.open for submission in self.submissions)

    def save(self, desk: Path) -> None:
        """Write the record."""
        rows = [{"token": s.token, "names": list(s.names), "id": s.id} for s in self.submissions]
        write_sealed(desk / f"{PREFIX}{self.tag}.json", {"schema": 1, "submissions": rows})

    def delete(self, desk: Path) -> None:
        """Delete the record."""
        (desk / f"{PREFIX}{self.tag}.json").unlink(missing_ok=True)


def new_batch(chunks: Sequence[Sequence[str]]) -> Batch:
    """A batch with a submission for each sequence of run ids."""
    submissions = [Submission(uuid.uuid4().hex[:16], tuple(names), open=set(names)) for names in chunks]
    return Batch(f"trimtab-{uuid.uuid4().hex[:12]}", submissions)


def load_batches(desk: Path) -> list[Batch]:
    """The batches of earlier drivers. None of their runs is open until somebody asks for it.

    Raises:
        IntegrityError: if a record is damaged.
    """
    batches: list[Batch] = []
    for file in sorted(desk.glob(f"{PREFIX}*.json")):
        record = read_sealed(file, REMEDY)
        try:
            rows: Sequence[Mapping[str, object]] = record["submissions"]
            found = [Submission(str(r["token"]), tuple(r["names"]), str(r["id"])) for r in rows]  # type: ignore[arg-type]
        except (KeyError, TypeError) as error:
            raise IntegrityError(f"{file}: damaged ({error}); {REMEDY}") from error
        batches.append(Batch(file.stem.removeprefix(PREFIX), found))
    return batches
