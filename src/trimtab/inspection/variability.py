"""Token Embedding Variability of a stored table, without torch; the probe computes the same during training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.05, 0.5, 0.95)
ROWS_AT_A_TIME = 1024  # computing a deviation takes as much memory as its rows


def variability(table: NDArray[np.float32]) -> dict[str, float]:
    """Mean, standard deviation and quantiles over the rows of (V, D) of the standard deviation within each row.

    Both are population standard deviations, in the unit of the weight. The results are NaN if an entry is not finite.
    """
    parts = (table[start : start + ROWS_AT_A_TIME] for start in range(0, len(table), ROWS_AT_A_TIME))
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, as documented
        deviations = np.concatenate([part.std(axis=1) for part in parts]).astype(np.float64)
    found = {"tev_mean": float(deviations.mean()), "tev_std": float(deviations.std())}
    quantiles = np.quantile(deviations, QUANTILES)
    return found | {f"tev_q{int(100 * q):02d}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)}
