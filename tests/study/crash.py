"""A study that kills itself at a named point: ``python crash.py TABLES FOLDER POINT``.

Each point is a function and how often it is called before the process dies, at once and without a word.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimtab import Study
from trimtab.report import report, write_report
from trimtab.run import files
from trimtab.run.folder import RunFolder
from trimtab.study import driver, lock
from trimtab.study.failures import Failures
from trimtab.study.index import Index

# By name: where the function lives, its name, at which call, and whether the call is still carried out.
POINTS: dict[str, tuple[Any, str, int, bool]] = {
    "the folder is made": (driver, "make_folder", 1, True),
    "the lock is taken": (lock.StudyLock, "__enter__", 1, True),
    "the study file is not yet written": (driver, "write_study", 1, False),
    "the first index is written and nothing else": (Index, "save", 1, True),
    "the trials of the sweep are planned": (Index, "save", 2, True),
    "a run has its folder": (RunFolder, "begin", 1, True),
    "a run is half way": (RunFolder, "append", 12, True),
    "an outcome is about to be written": (RunFolder, "finish", 2, False),
    "a file is written under its temporary name": (files.os, "fsync", 9, True),
    "an outcome is written and nobody has heard": (Failures, "forget", 3, False),
    "the trials of a later round are planned": (Index, "save", 4, True),
    "the page is about to be written": (report, "render", 1, False),
}


def dying(function: Callable[..., Any], calls: int, *, carried_out: bool) -> Callable[..., Any]:
    count = 0

    def called(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls and not carried_out:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if count == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return called


def main() -> None:
    tables, folder, point = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), sys.argv[3]
    place, name, calls, carried_out = POINTS[point]
    setattr(place, name, dying(getattr(place, name), calls, carried_out=carried_out))
    write_report(Study(**tables).run(folder, workers=0))


if __name__ == "__main__":
    main()
