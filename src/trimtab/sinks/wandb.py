"""Weights & Biases; offline by default, for a later ``wandb sync``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from trimtab.sink import Row


class WandbSink:
    """Logs to a new run, or to a run that is already open; needs wandb.

    Attributes:
        mode: ``offline`` writes files only; ``online`` sends them.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        project: str = "trimtab",
        mode: Literal["offline", "online"] = "offline",
        run: Any = None,
    ) -> None:
        import wandb

        self._wandb: Any = wandb
        self.folder = Path(folder)
        self.project = project
        self.mode = mode
        self._run: Any = run
        self._borrowed = run is not None
        self._prefix = "probes/" if self._borrowed else ""

    def open(self, run: str) -> None:
        if not self._borrowed:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._run = self._wandb.init(project=self.project, name=run, dir=str(self.folder), mode=self.mode)
        # A separate step axis, because the user's calls of log advance that of wandb. In a run of the user, metrics
        # also get the prefix, which separates their names.
        self._run.define_metric(f"{self._prefix}*", step_metric=f"{self._prefix}step")

    def log(self, step: int, row: Row) -> None:
        self._run.log({self._prefix + metric: value for metric, value in row.items()})

    def close(self, status: Literal["finished", "failed"]) -> None:
        if self._run is not None and not self._borrowed:
            self._run.finish(exit_code=0 if status == "finished" else 1)
            self._run = None
