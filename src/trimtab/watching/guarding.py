"""Measurement never stops training: errors of meters are counted, and switch the probes off."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable

import torch

FAILURES_ALLOWED = 3


class Guarding:
    """Runs what meters do.

    Attributes:
        broken: whether the probes are switched off.
        seconds: wall time by meter, on the host.
        device_type: of the model, for its autocast.
    """

    def __init__(self) -> None:
        self.broken = False
        self.seconds = defaultdict[str, float](float)
        self.device_type = "cpu"
        self._failures = 0

    def run(self, name: str, action: Callable[[], None]) -> None:
        """Run an action of the meter ``name`` without gradients and autocast; an error is counted, not raised."""
        started = time.perf_counter()
        try:
            # In the precision asked for, whatever the caller's autocast says.
            with torch.no_grad(), torch.autocast(self.device_type, enabled=False):
                action()
        except Exception as error:
            self._failures += 1
            if self._failures == FAILURES_ALLOWED:
                # Training matters more than its measurement.
                self.broken = True
                warnings.warn(
                    f"trimtab: probes are switched off after {FAILURES_ALLOWED} errors; the last was "
                    f"{type(error).__name__}: {error}",
                    stacklevel=2,
                )
        finally:
            self.seconds[name] += time.perf_counter() - started
