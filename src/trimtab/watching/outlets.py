"""The sinks of a watch; one that fails is switched off, and training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

from trimtab.sink import Row, Sink


class Outlets:
    """Passes rows to sinks.

    Opening happens before training, so its errors are raised. Later a sink that raises is closed and left out, with one
    warning: a full disk must not end a training.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def open(self, run: str) -> None:
        """Open every sink; if one raises, the ones before it are closed as failed."""
        opened: list[Sink] = []
        try:
            for sink in self._sinks:
                sink.open(run)
                opened.append(sink)
        except BaseException:
            self._sinks = opened
            self.close("failed")
            raise

    def log(self, step: int, row: Row) -> None:
        """Give the row to every sink that still works."""
        for sink in list(self._sinks):
            try:
                sink.log(step, row)
            except Exception as error:
                self._sinks.remove(sink)
                _warn(sink, f"at step {step}", error)
                self._close(sink, "failed")

    def close(self, status: Literal["finished", "failed"]) -> None:
        """Close every sink, once."""
        for sink in self._sinks:
            self._close(sink, status)
        self._sinks = []

    def _close(self, sink: Sink, status: Literal["finished", "failed"]) -> None:
        try:
            sink.close(status)
        except Exception as error:
            _warn(sink, "while it closed", error)


def _warn(sink: Sink, when: str, error: Exception) -> None:
    warnings.warn(
        f"trimtab: {type(sink).__name__} failed {when} ({type(error).__name__}: {error}); it gets no further readings, "
        "training goes on",
        stacklevel=4,
    )
