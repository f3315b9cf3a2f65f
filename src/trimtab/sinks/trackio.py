"""trackio: a local database with a local dashboard."""

from __future__ import annotations

from typing import Any, Literal

from trimtab.sink import Row


class TrackioSink:
    """Logs to a project in the local store of trackio, whose folder ``TRACKIO_DIR`` sets; needs trackio."""

    def __init__(self, project: str = "trimtab") -> None:
        import trackio

        self._trackio: Any = trackio
        self.project = project
        self._run: Any = None

    def open(self, run: str) -> None:
        self._run = self._trackio.init(project=self.project, name=run, embed=False)

    def log(self, step: int, row: Row) -> None:
        self._run.log({metric: value for metric, value in row.items() if metric != "step"}, step=step)

    def close(self, status: Literal["finished", "failed"]) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
