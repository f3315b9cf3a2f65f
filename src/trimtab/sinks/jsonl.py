"""One JSON object a line: readable by everything, whole after a crash but for the last line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal, TextIO

from trimtab.sink import Row


class JSONLSink:
    """Writes ``<folder>/<run>.jsonl``; NaN and infinities as text, which JSON has no numbers for.

    Raises:
        FileExistsError: in ``open``, if the run was written before: nothing is appended to another run's rows.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: TextIO | None = None

    def open(self, run: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{run}.jsonl"
        if file.exists():
            raise FileExistsError(f"{file} is there already: choose another run name or folder, or delete it")
        self._file = file.open("x", encoding="utf-8")

    def log(self, step: int, row: Row) -> None:
        assert self._file is not None, "open() comes first"
        sound = {k: v if math.isfinite(v) else str(v) for k, v in row.items()}
        self._file.write(json.dumps(sound, allow_nan=False) + "\n")
        self._file.flush()

    def close(self, status: Literal["finished", "failed"]) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
