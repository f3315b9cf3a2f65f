"""TensorBoard event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from trimtab.sink import Row
from trimtab.sinks.names import free_names


class TensorBoardSink:
    """Writes scalars to ``<folder>/<run>``, or ``<run>.2`` and so on if earlier runs have that name.

    Needs tensorboardX, or tensorboard through ``torch.utils.tensorboard``.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            from torch.utils.tensorboard import SummaryWriter
        self._make: Any = SummaryWriter
        self.folder = Path(folder)
        self._writer: Any = None

    def open(self, run: str) -> None:
        self._writer = self._make(str(next(free_names(self.folder, run, ""))))

    def log(self, step: int, row: Row) -> None:
        for metric, value in row.items():
            if metric != "step":
                self._writer.add_scalar(metric, value, step)
        self._writer.flush()

    def close(self, status: Literal["finished", "failed"]) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
