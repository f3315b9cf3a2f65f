"""trackio: a local database with a local dashboard."""

from __future__ import annotations

from typing import Any, Literal

from trimtab.sink import Row


class TrackioSink:
    """Logs to a project in the local store of trackio, whose folder ``TRACKIO_DIR`` sets; needs trackio.

    A run of the user that is open is used, under the prefix ``probes/``, and never finished: ``trackio.init`` would
    finish it. trackio stores in the background, within about a second.
    """

    def __init__(self, project: str = "trimtab") -> None:
        import trackio

        self._trackio: Any = trackio
        self.project = project
        self._run: Any = None
        self._borrowed = False
        self._prefix = ""

    def open(self, run: str) -> None:
        from trackio import context_vars

        self._run = context_vars.current_run.get()
        self._borrowed = self._run is not None
        self._prefix = "probes/" if self._borrowed else ""
        if not self._borrowed:
            self._run = self._trackio.init(project=self.project, name=run, embed=False)

    def log(self, step: int, row: Row) -> None:
        self._run.log({self._prefix + metric: value for metric, value in row.items() if metric != "step"}, step=step)

    def close(self, status: Literal["finished", "failed"]) -> None:
        if self._run is not None and not self._borrowed:
            self._run.finish()
        self._run = None
