"""Parquet in long format, one row per metric, for data frames and query engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from trimtab.sink import Row

ROWS_IN_MEMORY = 200_000


class ParquetSink:
    """Writes ``<folder>/<run>.parquet`` with the columns ``step``, ``metric`` and ``value``; needs pyarrow.

    The format is long because the metrics of a run may change from row to row. The file is complete only after
    ``close``.

    Raises:
        FileExistsError: in ``open``, if the file exists.
    """

    def __init__(self, folder: str | Path) -> None:
        import pyarrow

        self._arrow: Any = pyarrow
        self.folder = Path(folder)
        self._writer: Any = None
        self._rows: list[tuple[int, str, float]] = []

    def open(self, run: str) -> None:
        import pyarrow.parquet

        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{run}.parquet"
        if file.exists():
            raise FileExistsError(f"{file} already exists: choose another run name or folder, or delete the file")
        columns = (("step", "int64"), ("metric", "string"), ("value", "float64"))
        self._schema = self._arrow.schema([(name, getattr(self._arrow, kind)()) for name, kind in columns])
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)

    def log(self, step: int, row: Row) -> None:
        self._rows += [(step, metric, float(value)) for metric, value in row.items() if metric != "step"]
        if len(self._rows) >= ROWS_IN_MEMORY:
            self._flush()

    def close(self, status: Literal["finished", "failed"]) -> None:
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None

    def _flush(self) -> None:
        if self._rows:
            columns = [list(column) for column in zip(*self._rows, strict=True)]
            self._writer.write_table(self._arrow.table(columns, schema=self._schema))
            self._rows = []
