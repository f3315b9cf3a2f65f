"""JSON Lines: one JSON object per line. After a crash only the last line can be incomplete."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal, TextIO

from trimtab.sink import Row
from trimtab.sinks.names import free_names


class JSONLSink:
    """Writes ``<folder>/<run>.jsonl``, or ``<run>.2.jsonl`` and so on if earlier runs have that name.

    A line reaches the operating system before ``log`` returns, so a process that is killed loses no reading. NaN and
    infinities become null, because JSON has no numbers for them.

    Attributes:
        path: the file; None before ``open``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path: Path | None = None
        self._file: TextIO | None = None

    def open(self, run: str) -> None:
        for path in free_names(self.folder, run, ".jsonl"):
            try:
                self._file = path.open("x", encoding="utf-8")
            except FileExistsError:
                continue  # another process took it
            self.path = path
            return

    def log(self, step: int, row: Row) -> None:
        assert self._file is not None, "call open() before log()"
        sound = {k: v if math.isfinite(v) else None for k, v in row.items()}
        self._file.write(json.dumps(sound, allow_nan=False) + "\n")
        self._file.flush()

    def close(self, status: Literal["finished", "failed"]) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
