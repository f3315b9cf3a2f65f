"""Failed attempts and kills of the runs of a study, counted over restarts of the driver."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from trimtab.run.files import IntegrityError, read_sealed, write_sealed

FAILURES = "failures.json"
MOST_ATTEMPTS = 3
MOST_KILLS = 10
REMEDY = "delete it: failed attempts are then counted anew"


@dataclass(slots=True)
class Failure:
    """The failures of one run."""

    attempts: int = 0
    kills: int = 0
    error: str = ""

    @property
    def given_up(self) -> bool:
        """Whether the driver no longer retries the run."""
        return self.attempts >= MOST_ATTEMPTS or self.kills >= MOST_KILLS


class Failures:
    """The failures of a study folder, by run id. Each failure is written to disk before the driver reacts to it.

    Raises:
        IntegrityError: if the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FAILURES
        self.by_run: dict[str, Failure] = {}
        if self.file.exists():
            record = read_sealed(self.file, REMEDY)
            try:
                runs = cast("dict[str, Any]", record["runs"])
                self.by_run = {name: Failure(**entry) for name, entry in runs.items()}
            except (KeyError, TypeError, AttributeError) as error:
                raise IntegrityError(f"{self.file}: damaged ({error}); {REMEDY}") from error

    def give_another_chance(self) -> None:
        """Remove the runs that were given up, so that a restart of the study tries them again."""
        self.by_run = {name: failure for name, failure in self.by_run.items() if not failure.given_up}

    def add(self, name: str, error: str, *, killed: bool) -> bool:
        """Count one failure; returns True if the run is given up."""
        failure = self.by_run.setdefault(name, Failure())
        if killed:
            failure.kills += 1
        else:
            failure.attempts += 1
        failure.error = error
        self._save()
        return failure.given_up

    def forget(self, name: str) -> None:
        """Remove the failures of a run that now has an outcome."""
        if self.by_run.pop(name, None) is not None:
            self._save()

    def errors(self) -> dict[str, str]:
        """The last error of each run that was given up."""
        return {name: failure.error for name, failure in self.by_run.items() if failure.given_up}

    def _save(self) -> None:
        write_sealed(self.file, {"schema": 1, "runs": {name: asdict(failure) for name, failure in self.by_run.items()}})
