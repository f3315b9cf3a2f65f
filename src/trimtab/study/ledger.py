"""The study's own record: which runs it planned, how often each was tried, and what the machine did to them.

One process owns a study folder, by a lock that the system lets go of when the process ends in whatever way. Results
are not kept here but in the run folders; the ledger can be rebuilt from them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import TextIO

from trimtab.run.folder import IntegrityError

SCHEMA = """
CREATE TABLE IF NOT EXISTS trials (
    run_id TEXT NOT NULL, arm TEXT NOT NULL, tick INTEGER NOT NULL, seed INTEGER NOT NULL, round INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('planned', 'done', 'no_outcome')),
    attempts INTEGER NOT NULL DEFAULT 0, kills INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (run_id)
);
"""


class StudyLockedError(RuntimeError):
    """Another live process works on the study folder."""


class Ledger:
    """The table of trials of one study folder.

    Raises:
        StudyLockedError: on entry, if another live process holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: TextIO | None = None
        self._db: sqlite3.Connection | None = None

    def __enter__(self) -> Ledger:
        lock = (self.folder / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise StudyLockedError(
                f"{self.folder}: process {owner} is working on this study; wait for it, or use another --out"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
        # A rollback journal with full sync: WAL has a corruption bug in the SQLite of many Pythons.
        with _translated(self.folder):
            self._db = sqlite3.connect(self.folder / "study.sqlite", isolation_level=None)
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(SCHEMA)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._db is not None:
            self._db.close()
        if self._lock is not None:
            self._lock.close()

    def plan(self, rows: list[tuple[str, str, int, int, int]]) -> None:
        """Add trials (run_id, arm, tick, seed, round) that are not there yet; one commit."""
        self._many(
            "INSERT OR IGNORE INTO trials (run_id, arm, tick, seed, round, state) VALUES (?, ?, ?, ?, ?, 'planned')",
            rows,
        )

    def finish(self, run_ids: list[str]) -> None:
        """Note that these runs have their outcome; one commit."""
        self._many(
            "UPDATE trials SET state = 'done', error = '' WHERE run_id = ? AND state != 'done'",
            [(run_id,) for run_id in run_ids],
        )

    def fail(self, run_id: str, error: str, *, killed: bool, final: bool) -> None:
        """Note one failed attempt; ``final`` gives the run up."""
        column = "kills" if killed else "attempts"
        state = "no_outcome" if final else "planned"
        self._many(
            f"UPDATE trials SET {column} = {column} + 1, state = ?, error = ? WHERE run_id = ?",
            [(state, error, run_id)],
        )

    def errors(self) -> dict[str, str]:
        """The last error of each run without outcome."""
        assert self._db is not None
        return _errors_in(self._db)

    def _many(self, statement: str, rows: list[tuple[str, ...]] | list[tuple[str, str, int, int, int]]) -> None:
        assert self._db is not None, "the ledger is used inside a with block"
        with _translated(self.folder):
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(statement, rows)
            self._db.execute("COMMIT")


def no_outcomes(folder: Path) -> dict[str, str]:
    """The last error of each run without outcome, read without taking the lock; nothing if the ledger is lost."""
    file = folder / "study.sqlite"
    if not file.exists():
        return {}
    with _translated(folder):
        database = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
        try:
            return _errors_in(database)
        finally:
            database.close()


def _errors_in(database: sqlite3.Connection) -> dict[str, str]:
    rows = database.execute("SELECT run_id, error FROM trials WHERE state = 'no_outcome'")
    return {str(run_id): str(error) for run_id, error in rows}


@contextlib.contextmanager
def _translated(folder: Path) -> Generator[None]:
    """SQLite's errors as ours: a refusing disk, or a damaged file that can be made anew."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"study.sqlite: {error}") from error
    except sqlite3.DatabaseError as error:
        raise IntegrityError(
            f"{folder / 'study.sqlite'}: damaged ({error}); delete it, it is made anew from the runs"
        ) from error
