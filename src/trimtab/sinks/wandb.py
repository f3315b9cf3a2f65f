"""Weights & Biases; offline unless told otherwise, for ``wandb sync`` later."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from trimtab.sink import Row


class WandbSink:
    """Logs to a run of its own, or to one that is open already; needs wandb.

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
        self.folder, self.project, self.mode = Path(folder), project, mode
        self._run: Any = run
        self._borrowed = run is not None
        self._prefix = "probes/" if self._borrowed else ""

    def open(self, run: str) -> None:
        if not self._borrowed:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._run = self._wandb.init(project=self.project, name=run, dir=str(self.folder), mode=self.mode)
        # Own axis: the user's own calls of log advance wandb's. In a run of the user's, own names as well.
        self._run.define_metric(f"{self._prefix}*", step_metric=f"{self._prefix}step")

    def log(self, step: int, row: Row) -> None:
        self._run.log({self._prefix + metric: value for metric, value in row.items()})

    def close(self, status: Literal["finished", "failed"]) -> None:
        if self._run is not None and not self._borrowed:
            self._run.finish(exit_code=0 if status == "finished" else 1)
            self._run = None
