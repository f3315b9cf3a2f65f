"""Folders of version 0.1.0, which have no index. The specification in a run folder identifies the run of a trial.

The search of today need not ask for the probes of that version. They stay evidence, as trials of an earlier version.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trimtab.config import ConfigError, canonical, load_toml
from trimtab.run.files import IntegrityError
from trimtab.run.folder import SPEC, Outcome, load_outcome
from trimtab.run.identity import settled
from trimtab.run.reading import read_run
from trimtab.run.spec import RunSpec
from trimtab.study.index import Index
from trimtab.study.kind import kind_of
from trimtab.study.specification import StudySpec
from trimtab.study.trial import Tick, Trial, earlier_round

LEDGER = "study.sqlite"
NO_OUTCOME = "no_outcome"  # the state of a run that was given up
NOTE = "these runs were made by version 0.1.0, which did not record the data and code that they rest on"


def migrate(folder: Path, study: str, spec: StudySpec) -> Index:
    """Compute the index of a folder of version 0.1.0. Nothing is written.

    Args:
        folder: the study folder, with run folders in ``runs``.
        study: the text of study.toml.
        spec: the specification that study.toml describes.

    Raises:
        IntegrityError: if a run is damaged.
    """
    stored = _runs_by_settings(folder / "runs")
    rows = _rows_of(folder)
    given_up = {name for name, row in rows.items() if row.state == NO_OUTCOME}
    outcomes = {name: load_outcome(folder / "runs" / name) for name in stored.values()}
    made = {key: name for key, name in stored.items() if outcomes[name] is not None or name in given_up}
    index = Index(study, bases=dict.fromkeys(spec.arms), notes=[NOTE])
    index.complete = _replay(spec, made, outcomes, index)
    for name in [name for name in rows if name in made.values() and name not in index.runs.values()]:
        row = rows[name]
        index.runs[Trial(earlier_round(row.round), row.arm, Tick(row.tick), row.seed)] = name
    index.complete |= bool(rows) and all(name in index.runs.values() for name in rows)
    return index


def _replay(spec: StudySpec, made: Mapping[str, str], outcomes: Mapping[str, Outcome | None], index: Index) -> bool:
    """Add to the index the stored runs that the search asks for; whether it asks for no other."""
    results: dict[Trial, Outcome | None] = {}
    search = kind_of(spec).rounds(spec)
    batch = next(search)
    while True:
        for trial in batch:
            name = made.get(_key(spec.run_of(trial)))
            if name is not None:
                index.runs[trial] = name
                results[trial] = outcomes[name]
        if not all(trial in results for trial in batch):
            return False
        try:
            batch = search.send(results)
        except StopIteration:
            return True


@dataclass(frozen=True, slots=True)
class _Row:
    """A trial in the database of version 0.1.0."""

    arm: str
    tick: int
    seed: int
    round: int
    state: str
    error: str


def errors_of(folder: Path) -> dict[str, str]:
    """The last error of each run that was given up; empty if the folder has no database of trials.

    Raises:
        IntegrityError: if the database is damaged.
        OSError: if another process has locked the database.
    """
    return {name: row.error for name, row in _rows_of(folder).items() if row.state == NO_OUTCOME}


def _rows_of(folder: Path) -> dict[str, _Row]:
    """The rows of the database by run id; empty if the folder has none."""
    file = folder / LEDGER
    if not file.is_file():
        return {}
    with _translated(file):
        database = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=2)
        try:
            rows = database.execute("SELECT run_id, arm, tick, seed, round, state, error FROM trials").fetchall()
        finally:
            database.close()
    return {
        str(name): _Row(str(arm), int(tick), int(seed), int(round_), str(state), str(error))
        for name, arm, tick, seed, round_, state, error in rows
    }


def _runs_by_settings(runs: Path) -> Mapping[str, str]:
    names: dict[str, str] = {}
    for file in sorted(runs.glob(f"*/{SPEC}")):
        try:
            names[_key(read_run(load_toml(file), str(file)))] = file.parent.name
        except ConfigError as error:
            raise IntegrityError(f"{error}; delete the folder of that run to train it again") from error
    return names


def _key(run: RunSpec) -> str:
    return canonical(settled(run))


@contextlib.contextmanager
def _translated(file: Path) -> Generator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise OSError(f"{file}: another process has locked it; wait for that process to end") from error
        raise OSError(f"{file}: cannot be read ({error})") from error
    except sqlite3.DatabaseError as error:
        raise IntegrityError(
            f"{file}: damaged ({error}); delete it; the outcomes of the runs are in their folders"
        ) from error
