"""Spike scores of a loss or gradient-norm curve, after training: the share of steps that stand out.

A value that is not finite is a spike, and never enters a window.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

import numpy as np

WINDOW = 1000


def spike_share(values: Sequence[float], deviations: float, window: int = WINDOW) -> float:
    """Percentage of values at least so many standard deviations from the mean of the last ``window`` before them.

    7 deviations is OLMo 2's spike score (arXiv 2501.00656, of loss and of gradient norm), 10 AdaGC's (arXiv
    2502.11034, of loss). The present value is left out of its own window; the first two values cannot be judged.
    NaN for an empty sequence.
    """
    spikes = 0
    seen = deque[float](maxlen=window)
    for value in values:
        if len(seen) >= 2:
            # Afresh for each value: running sums would keep the rounding of a huge value that has left the window.
            near = np.fromiter(seen, float)
            scale = float(np.abs(near).max()) or 1.0
            mean, sd = float((near / scale).mean()) * scale, float((near / scale).std()) * scale
            # In a flat window rounding leaves a deviation of some 1e-8: what differs by less than that is no spike.
            limit = max(deviations * sd, 1e-7 * abs(mean), 1e-300)
            spikes += not math.isfinite(value) or abs(value - mean) >= limit
        elif not math.isfinite(value):
            spikes += 1
        if math.isfinite(value):
            seen.append(value)
    return 100 * spikes / len(values) if len(values) else math.nan


def median_spikes(values: Sequence[float], margin: float = 0.1, window: int = 201, *, centred: bool = True) -> float:
    """Values more than ``margin`` above the rolling median, per 10,000 steps (arXiv 2608.30320, section 3.3).

    The window is centred on each value, as suits a finished curve, or ends at it; at the ends it holds what there is.
    NaN for an empty sequence.
    """
    spikes = 0
    for i, value in enumerate(values):
        before, after = (window // 2, window // 2) if centred else (window - 1, 0)
        near = [v for v in values[max(0, i - before) : i + after + 1] if math.isfinite(v)]
        spikes += not math.isfinite(value) or (bool(near) and value > statistics.median(near) + margin)
    return 10_000 * spikes / len(values) if len(values) else math.nan
