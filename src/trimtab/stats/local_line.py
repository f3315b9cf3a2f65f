"""The straight line through the points near a place: how steep the values are there, and how they scatter about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_POINTS = 4


@dataclass(frozen=True, slots=True)
class LocalLine:
    """A least-squares line.

    Attributes:
        slope: change of y per unit of x.
        spread: standard deviation of y about the line, with n - 2 degrees of freedom.
        points: number of points.
    """

    slope: float
    spread: float
    points: int


def local_line(x: Sequence[float], y: Sequence[float], at: float, within: float) -> LocalLine | None:
    """Return the line through the points whose x is within a distance of ``at``.

    Points that are not finite are left out. None with fewer than 4 points, or if all have the same x.
    """
    near = [
        (a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b) and abs(a - at) <= within
    ]
    if len(near) < LEAST_POINTS or len({a for a, _ in near}) < 2:
        return None
    table = np.array(near)
    centred = table[:, 0] - table[:, 0].mean()
    slope = float(centred @ table[:, 1] / (centred @ centred))
    rest = table[:, 1] - table[:, 1].mean() - slope * centred
    return LocalLine(slope, math.sqrt(float(rest @ rest) / (len(near) - 2)), len(near))
