"""Linear regression through uncertain estimates, with predictions for new points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVELS = (0.025, 0.5, 0.975)


@dataclass(frozen=True, slots=True)
class Trend:
    """Median and 95 % interval of each coefficient, and of a new observation at each requested point."""

    coefficients: Floats
    predictions: Floats


def linear_trend(design: Floats, draws: Floats, at: Floats, seed: int = 0) -> Trend:
    """Bayesian linear regression with a flat prior, over draws of the estimates.

    For each draw of the estimates, coefficients are drawn from their posterior. A prediction adds the residual scatter
    about the line. The uncertainty of the estimates enters twice, once through the draws and once through the scatter,
    so the intervals are conservative.

    Args:
        design: (points, coefficients), the design matrix, of full rank.
        draws: (number of draws, points), draws from the posterior of each point.
        at: (predictions, coefficients), design rows at which to predict.
        seed: seed of the random draws.

    Returns:
        ``coefficients`` (coefficients, 3) and ``predictions`` (predictions, 3): low, median, high.

    Raises:
        ValueError: if there are not more points than coefficients, or the design is not of full rank.
    """
    points, width = design.shape
    freedom = points - width
    if freedom < 1:
        raise ValueError(f"{points} points do not determine {width} coefficients and the residual scatter")
    if np.linalg.matrix_rank(design) < width:
        raise ValueError("the design is not of full rank: the points do not tell the coefficients apart")
    rng = np.random.default_rng(seed)
    inverse = np.linalg.inv(design.T @ design)
    fitted = draws @ design @ inverse
    rest = draws - fitted @ design.T
    sigma = np.sqrt((rest**2).sum(1) / rng.chisquare(freedom, len(draws)))
    coefficients = fitted + sigma[:, None] * (rng.standard_normal(fitted.shape) @ np.linalg.cholesky(inverse).T)
    predictions = coefficients @ at.T + sigma[:, None] * rng.standard_normal((len(draws), len(at)))
    return Trend(np.quantile(coefficients, LEVELS, axis=0).T, np.quantile(predictions, LEVELS, axis=0).T)
