"""Linear regression through uncertain estimates, with predictions for new points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVELS = (0.025, 0.5, 0.975)
GRID = 60  # values of the shared scatter


@dataclass(frozen=True, slots=True)
class Trend:
    """Median and 95 % interval of each coefficient, and of a new observation at each requested point."""

    coefficients: Floats
    predictions: Floats


def linear_trend(design: Floats, draws: Floats, at: Floats, seed: int = 0) -> Trend:
    """Bayesian linear regression through estimates with known errors, the model of a random-effects meta-analysis.

    An estimate scatters about the line by its own error, taken from its draws, and by a scatter that all points share.
    The prior of the coefficients is flat, that of the shared scatter flat up to four times the observed scatter. A
    prediction is of a new point without an error of its own: it adds the shared scatter.

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
    if points - width < 1:
        raise ValueError(f"{points} points do not determine {width} coefficients and the residual scatter")
    if np.linalg.matrix_rank(design) < width:
        raise ValueError("the design is not of full rank: the points do not tell the coefficients apart")
    rng = np.random.default_rng(seed)
    estimates, errors = draws.mean(0), draws.var(0)
    plain = np.linalg.lstsq(design, estimates, rcond=None)[0]
    observed = math.sqrt(float(((estimates - design @ plain) ** 2).sum()) / (points - width))
    scatters = np.linspace(0.0, 4 * max(observed, float(np.sqrt(errors.mean())), 1e-6), GRID)
    fits = [_fit(design, estimates, errors + scatter**2) for scatter in scatters]
    weight = np.exp(np.array([fit[2] for fit in fits]) - max(fit[2] for fit in fits))
    chosen = rng.choice(GRID, len(draws), p=weight / weight.sum())
    normal = rng.standard_normal((len(draws), width))
    coefficients = np.stack([fits[i][0] + fits[i][1] @ z for i, z in zip(chosen, normal, strict=True)])
    predictions = coefficients @ at.T + scatters[chosen, None] * rng.standard_normal((len(draws), len(at)))
    return Trend(np.quantile(coefficients, LEVELS, axis=0).T, np.quantile(predictions, LEVELS, axis=0).T)


def _fit(design: Floats, estimates: Floats, variance: Floats) -> tuple[Floats, Floats, float]:
    """Weighted least squares: coefficients, a square root of their covariance, and the log marginal likelihood."""
    variance = np.maximum(variance, 1e-12)
    precision = design.T @ (design / variance[:, None])
    covariance = np.linalg.inv(precision)
    coefficients = covariance @ (design.T @ (estimates / variance))
    rest = estimates - design @ coefficients
    log_evidence = -0.5 * (np.log(variance).sum() + np.linalg.slogdet(precision)[1] + float((rest**2 / variance).sum()))
    return coefficients, np.linalg.cholesky(covariance).astype(np.float64), float(log_evidence)
