"""Where readings go: the contract of a sink."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

Row = Mapping[str, float]
"""Metric keys to numbers; ``step`` is always one of them, and whole."""


@runtime_checkable
class Sink(Protocol):
    """Takes the rows of one run in order. A sink may drop nothing: what it cannot store it must refuse loudly."""

    def open(self, run: str) -> None:
        """Begin a run; called once, before its first row."""
        ...

    def log(self, step: int, row: Row) -> None:
        """Take one row; ``row["step"]`` equals ``step``."""
        ...

    def close(self, status: Literal["finished", "failed"]) -> None:
        """End the run; everything logged is stored when this returns."""
        ...
