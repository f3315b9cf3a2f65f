"""Spike scores of a finished loss or gradient-norm curve: the share of its steps that are outliers.

A non-finite value counts as a spike and never enters a window.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

import numpy as np

WINDOW = 1000


def spike_share(values: Sequence[float], deviations: float, window: int = WINDOW) -> float:
    """Percentage of values that lie at least ``deviations`` standard deviations from the mean of their window.

    The window of a value holds the ``window`` finite values before it. The score of OLMo 2 uses 7 deviations (arXiv
    2501.00656, for loss and gradient norm); that of AdaGC uses 10 (arXiv 2502.11034, for loss). The first two values
    have too short a window, so they count as spikes only if they are not finite. NaN for an empty sequence.
    """
    spikes = 0
    seen = deque[float](maxlen=window)
    for value in values:
        if len(seen) >= 2:
            # Recomputed for each value: running sums would keep the rounding error of a huge value after it has left.
            near = np.fromiter(seen, float)
            scale = float(np.abs(near).max()) or 1.0
            mean, sd = float((near / scale).mean()) * scale, float((near / scale).std()) * scale
            # In a flat window rounding errors give a deviation of about 1e-8, so smaller differences are no spikes.
            limit = max(deviations * sd, 1e-7 * abs(mean), 1e-300)
            spikes += not math.isfinite(value) or abs(value - mean) >= limit
        elif not math.isfinite(value):
            spikes += 1
        if math.isfinite(value):
            seen.append(value)
    return 100 * spikes / len(values) if len(values) else math.nan


def median_spikes(values: Sequence[float], margin: float = 0.1, window: int = 201, *, centred: bool = True) -> float:
    """Number of values more than ``margin`` above the rolling median, per 10,000 steps.

    The definition is that of arXiv 2608.30320, section 3.3. The window is centred on each value, or ends at it if
    ``centred`` is false. It is shorter at the ends of the curve. NaN for an empty sequence.
    """
    spikes = 0
    for i, value in enumerate(values):
        before, after = (window // 2, window // 2) if centred else (window - 1, 0)
        near = [v for v in values[max(0, i - before) : i + after + 1] if math.isfinite(v)]
        spikes += not math.isfinite(value) or (bool(near) and value > statistics.median(near) + margin)
    return 10_000 * spikes / len(values) if len(values) else math.nan
