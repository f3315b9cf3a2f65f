"""Folders of version 0.1.0, which have no index. The specification in a run folder identifies the run of a trial."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator, Mapping
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
from trimtab.study.trial import Trial

LEDGER = "study.sqlite"
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
    given_up = set(errors_of(folder))
    index = Index(study, bases=dict.fromkeys(spec.arms), notes=[NOTE])
    results: dict[Trial, Outcome | None] = {}
    search = kind_of(spec).rounds(spec)
    batch = next(search)
    while True:
        for trial in batch:
            run = spec.arms[trial.arm].run(trial.tick, trial.seed, trial.data_seed)
            name = stored.get(_key(run))
            if name is None:
                continue
            outcome = load_outcome(folder / "runs" / name)
            if outcome is not None or name in given_up:
                index.runs[trial] = name
                results[trial] = outcome
        if not all(trial in results for trial in batch):
            return index
        try:
            batch = search.send(results)
        except StopIteration:
            index.complete = True
            return index


def errors_of(folder: Path) -> dict[str, str]:
    """The last error of each run that was given up; empty if the folder has no database of trials.

    Raises:
        IntegrityError: if the database is damaged.
        OSError: if another process has locked the database.
    """
    file = folder / LEDGER
    if not file.is_file():
        return {}
    with _translated(file):
        database = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=2)
        try:
            rows = database.execute("SELECT run_id, error FROM trials WHERE state = 'no_outcome'").fetchall()
        finally:
            database.close()
    return {str(run_id): str(error) for run_id, error in rows}


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
