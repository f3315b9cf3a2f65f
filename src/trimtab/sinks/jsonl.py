"""JSON Lines: one JSON object per line. After a crash only the last line can be incomplete."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal, TextIO

from trimtab.sink import Row


class JSONLSink:
    """Writes ``<folder>/<run>.jsonl``.

    NaN and infinities are written as strings, because JSON has no numbers for them.

    Raises:
        FileExistsError: in ``open``, if the file exists. Rows are never appended to those of another run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: TextIO | None = None

    def open(self, run: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{run}.jsonl"
        if file.exists():
            raise FileExistsError(f"{file} already exists: choose another run name or folder, or delete the file")
        self._file = file.open("x", encoding="utf-8")

    def log(self, step: int, row: Row) -> None:
        assert self._file is not None, "call open() before log()"
        sound = {k: v if math.isfinite(v) else str(v) for k, v in row.items()}
        self._file.write(json.dumps(sound, allow_nan=False) + "\n")
        self._file.flush()

    def close(self, status: Literal["finished", "failed"]) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
