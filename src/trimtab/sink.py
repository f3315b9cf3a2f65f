"""The contract of a sink, which receives the readings of probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

Row = Mapping[str, float]
"""Maps metric keys to numbers. The key ``step`` is always present, and its value is a whole number."""


@runtime_checkable
class Sink(Protocol):
    """Receives the rows of one run in order. A sink must not drop a row: if it cannot store the row, it raises."""

    def open(self, run: str) -> None:
        """Begin a run; called once, before the first row."""
        ...

    def log(self, step: int, row: Row) -> None:
        """Store one row; ``row["step"]`` equals ``step``."""
        ...

    def close(self, status: Literal["finished", "failed"]) -> None:
        """End the run; when this returns, every row is stored."""
        ...
