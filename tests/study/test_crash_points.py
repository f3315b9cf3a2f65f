"""A driver that dies at any of twelve points: the same study in the same folder goes on to the same results."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab import Study
from trimtab.report import write_report
from trimtab.study.stored import load_stored

CRASH = Path(__file__).with_name("crash.py")


def points() -> list[str]:
    spec = importlib.util.spec_from_file_location("crash", CRASH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.POINTS)


EVERY_TIME = (
    "the lock is taken",
    "the first index is written and nothing else",
    "a file is written under its temporary name",
    "an outcome is written and nobody has heard",
    "the trials of a later round are planned",
)


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=() if point in EVERY_TIME else pytest.mark.nightly) for point in points()]
)
def test_a_driver_that_dies_changes_nothing(
    point: str,
    tiny_tables: Callable[..., dict[str, Any]],
    finished: Path,
    tmp_path: Path,
    text_of: Callable[[Any], str],
) -> None:
    tables = tmp_path / "tables.json"
    tables.write_text(json.dumps(tiny_tables()))
    folder = tmp_path / "study"
    command = [sys.executable, str(CRASH), str(tables), str(folder), point]
    died = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert died.returncode == -signal.SIGKILL, f"the point was never met: {died.stderr}"
    findings = Study(**tiny_tables()).run(folder, workers=0)
    assert text_of(findings) == text_of(load_stored(finished).findings())
    write_report(findings)
    assert findings.evidence.complete
    names = {path.name for path in (folder / "runs").iterdir()}
    assert names == {run.run_id for run in findings.runs}
