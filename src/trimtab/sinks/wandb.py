"""Weights & Biases; offline by default, for a later ``wandb sync``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from trimtab.sink import Row


class WandbSink:
    """Logs to a new run, or to the run that is open already, under the prefix ``probes/``; needs wandb.

    A run of the user is never finished here.

    Args:
        folder: of a new run.
        project: of a new run.
        mode: of a new run: ``offline`` writes files only; ``online`` sends them.
        run: an open run; by default ``wandb.run`` when the watch begins, if there is one.
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
        self._given: Any = run
        self._run: Any = None
        self._borrowed = False
        self._prefix = ""

    def open(self, run: str) -> None:
        self._run = self._given if self._given is not None else self._wandb.run
        self._borrowed = self._run is not None
        self._prefix = "probes/" if self._borrowed else ""
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
