"""The time that readings of probes take in a run, compared with ordinary steps."""

from __future__ import annotations

import statistics
import time

from trimtab.watching import Watch


class StepTimes:
    """Wall times of ordinary steps and of readings, measured by the Python process, not by the device."""

    def __init__(self) -> None:
        self.plain: list[float] = []
        self.readings = 0
        self.read = -1
        self.last = time.perf_counter()

    def tick(self, watching: Watch | None, *, evaluated: bool) -> None:
        """Record the end of a step."""
        now = time.perf_counter()
        read = int(watching.last.get("step", 0)) if watching is not None else 0
        if read != self.read:
            self.readings += read > 0
        elif not evaluated:
            self.plain.append(now - self.last)
        self.read = read
        self.last = now

    def table(self, watching: Watch) -> dict[str, float]:
        """Median seconds of a step without reading or evaluation, and mean seconds of each kind of reading."""
        per_reading = {what: seconds / max(1, self.readings) for what, seconds in sorted(watching.seconds.items())}
        return {"step": statistics.median(self.plain) if self.plain else 0.0} | per_reading
