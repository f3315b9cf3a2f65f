"""Parquet in long format, one row per metric, for data frames and query engines."""

from __future__ import annotations

import atexit
import time
from pathlib import Path
from typing import Any, Literal

from trimtab.sink import Row
from trimtab.sinks.names import free_names

FLUSH_SECONDS = 30.0
FLUSH_ROWS = 200_000


class ParquetSink:
    """Writes parts into the folder ``<folder>/<run>.parquet``, a data set that readers of Parquet open by its path.

    A Parquet file cannot be read until its end is written. So the readings since the last flush become a file of their
    own every 30 seconds, and when the sink closes or Python exits. A process that is killed loses at most the readings
    since the last flush. Columns: ``step``, ``metric`` and ``value``; the format is long, because the metrics of a run
    may change from row to row. Needs pyarrow.

    Args:
        folder: holds the runs; an earlier run of the same name stays, and the next is called ``<run>.2.parquet``.
        flush_seconds: longest time that readings wait in memory; 0 writes a file for each.

    Attributes:
        path: the folder of the parts; None before ``open``.
    """

    def __init__(self, folder: str | Path, *, flush_seconds: float = FLUSH_SECONDS) -> None:
        import pyarrow

        self._arrow: Any = pyarrow
        self.folder = Path(folder)
        self.flush_seconds = flush_seconds
        self.path: Path | None = None
        self._rows: list[tuple[int, str, float]] = []
        self._flushed = 0.0
        self._parts = 0

    def open(self, run: str) -> None:
        columns = (("step", "int64"), ("metric", "string"), ("value", "float64"))
        self._schema = self._arrow.schema([(name, getattr(self._arrow, kind)()) for name, kind in columns])
        for path in free_names(self.folder, run, ".parquet"):
            try:
                path.mkdir()
            except FileExistsError:
                continue  # another process took it
            self.path = path
            break
        self._flushed = time.monotonic()
        self._parts = 0
        atexit.register(self.flush)

    def log(self, step: int, row: Row) -> None:
        assert self.path is not None, "call open() before log()"
        self._rows += [(step, metric, float(value)) for metric, value in row.items() if metric != "step"]
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed >= self.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write the readings in memory as the next part."""
        import pyarrow.parquet

        if self._rows and self.path is not None:
            columns = [list(column) for column in zip(*self._rows, strict=True)]
            arriving = self.path / f".part-{self._parts:06d}"  # readers skip names that begin with a dot
            pyarrow.parquet.write_table(self._arrow.table(columns, schema=self._schema), arriving)
            arriving.rename(self.path / f"part-{self._parts:06d}.parquet")
            self._parts += 1
            self._rows = []
        self._flushed = time.monotonic()

    def close(self, status: Literal["finished", "failed"]) -> None:
        self.flush()
        atexit.unregister(self.flush)
