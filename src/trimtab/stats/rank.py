"""Agreement of two orders: Kendall's tau-b."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def kendall_tau_b(first: Sequence[float], second: Sequence[float]) -> float:
    """Tau-b, which corrects for ties: 1 same order, -1 reversed; nan if either side is all ties.

    Raises:
        ValueError: if the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"lengths differ: {len(first)} and {len(second)}")
    a, b = np.asarray(first, float), np.asarray(second, float)
    upper = np.triu_indices(len(a), 1)
    sign_a = np.sign(a[:, None] - a)[upper]
    sign_b = np.sign(b[:, None] - b)[upper]
    scale = np.sqrt((sign_a**2).sum() * (sign_b**2).sum())
    return float((sign_a * sign_b).sum() / scale) if scale else float("nan")
