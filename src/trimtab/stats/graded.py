r"""Likelihood of an edge from losses instead of labels: by how much each run missed or held the line.

A label says on which side of a line a final loss lies. Where losses rise with the learning rate, a loss just above the
line also says that the edge is near, and one far above that it is not. The distance is graded by further lines at even
steps below and above the first one. Each of them has an edge of the same width, moved by an unknown gap, which differs
between the two sides:

.. math:: P(\mathrm{loss} > L_j \mid x) = \mathrm{logistic}((x - x_{50} - j g) / s)

(a proportional-odds model). Where runs fall off a cliff, distances carry no information about the learning rate, and
this model would be wrong. Therefore a share of the probability ignores the learning rate: given its side, a run has a
grade by a fixed profile. Share and profile are unknown and summed out, so that the losses themselves decide how much
their distances count; where they count for nothing, the labels remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SIDE = 2  # further lines on each side
GRADES = 2 * SIDE + 2
UNGRADED = -1
GAPS = np.geomspace(0.04, 0.33, 5)  # octaves between the edges of two lines; a flatter slope is read by its labels
LAPSES = np.array([0.0, 0.02, 0.06])
LEAST = 1e-12


@dataclass(frozen=True, slots=True)
class Mode:
    """One way in which distances from the line may come about.

    Attributes:
        prior: its probability before the runs.
        ignoring: share of the probability that ignores the learning rate.
        profile: share of each grade in that part, from the line outwards.
    """

    prior: float
    ignoring: float
    profile: tuple[float, float, float]


EVEN = (1 / 3, 1 / 3, 1 / 3)
MODES: Sequence[Mode] = (
    Mode(0.1, 0.15, EVEN),
    Mode(0.25, 0.4, EVEN),
    Mode(0.2, 1.0, EVEN),
    Mode(0.2, 1.0, (0.1, 0.15, 0.75)),
    Mode(0.125, 1.0, (0.6, 0.25, 0.15)),
    Mode(0.125, 1.0, (0.4, 0.4, 0.2)),
)
PRIORS = np.array([mode.prior for mode in MODES])


class GradedLikelihood:
    """The likelihood over (x50, width) of graded runs.

    Args:
        x50: grid of log2 LR50, ascending and even.
        widths: grid of widths, in octaves.
        lapse_prior: prior probability of each of ``LAPSES``.
    """

    def __init__(self, x50: Floats, widths: Floats, lapse_prior: Floats) -> None:
        self.x50 = x50
        self.step = float(x50[1] - x50[0])
        self.widths = tuple(widths.tolist())
        self.lapse_prior = lapse_prior

    def marginal(self, x: Floats, failed: NDArray[np.bool_], grade: NDArray[np.intp]) -> Floats:
        """The likelihood, summed over lapses, gaps and modes, and scaled to a maximum near 1.

        Args:
            x: log2 LR of each run.
            failed: whether each run failed.
            grade: number of lines, of the ``GRADES - 1``, below the loss of each run; ``UNGRADED`` if only the label is
                known.
        """
        sides: dict[bool, NDArray[np.float32]] = {}
        for octave, failure, number in zip(x.tolist(), failed.tolist(), grade.tolist(), strict=True):
            table = self._table(octave, number, failed=failure)
            if failure in sides:
                sides[failure] += table
            else:
                sides[failure] = table.copy()
        likelihood = np.ones((len(self.x50), len(self.widths), len(LAPSES)))
        for total in sides.values():  # a run below the line knows the lower gap only, one above it the upper gap
            likelihood *= np.exp(total - total.max()).mean(3) @ PRIORS
        return likelihood @ self.lapse_prior

    def _table(self, x: float, grade: int, *, failed: bool) -> NDArray[np.float32]:
        """Log-probability of a run, with the axes x50, width, lapse, gap and mode.

        It depends on the distance of the LR from x50 alone, so the tables of all rates of the grid are slices of one.
        """
        points = len(self.x50)
        place = (x - float(self.x50[0])) / self.step
        nearest = round(place)
        if abs(place - nearest) > 1e-6 or not -points <= nearest <= 2 * points:
            return _log_probability(x - self.x50, self.widths, grade, failed=failed)
        first = 2 * points - nearest
        return _by_distance(self.step, points, self.widths, grade, failed)[first : first + points]


@lru_cache(maxsize=2 * GRADES)  # of about 4 MB; a study has one grid
def _by_distance(step: float, points: int, widths: tuple[float, ...], grade: int, failed: bool) -> NDArray[np.float32]:
    """The table of every distance from 2 ``points`` steps above to as many below."""
    return _log_probability(
        (np.arange(2 * points, -2 * points, -1) * step).astype(np.float64), widths, grade, failed=failed
    )


def _log_probability(distance: Floats, widths: tuple[float, ...], grade: int, *, failed: bool) -> NDArray[np.float32]:
    """Log-probability of a run at each distance of its log2 LR from x50."""
    at_line = _above(distance, widths, 0)
    side = at_line if failed else 1 - at_line
    table = np.empty((len(distance), len(widths), len(LAPSES), len(GAPS), len(MODES)), np.float32)
    for index, mode in enumerate(MODES):
        if grade == UNGRADED:
            share, probability = 1.0, side
        else:
            share = mode.profile[grade - SIDE - 1 if failed else SIDE - grade]
            probability = (1 - mode.ignoring) * _between(distance, widths, grade) + mode.ignoring * share * side
        lapsed = LAPSES[:, None] * share if failed else 0.0
        mixed = (1 - LAPSES[:, None]) * probability[:, :, None, :] + lapsed
        table[:, :, :, :, index] = np.log(np.maximum(mixed, LEAST))
    return table


def _between(distance: Floats, widths: tuple[float, ...], grade: int) -> Floats:
    """Probability of a grade by the edges of the lines around it."""
    lower = _above(distance, widths, grade - SIDE - 1) if grade > 0 else 1.0
    upper = _above(distance, widths, grade - SIDE) if grade < GRADES - 1 else 0.0
    return np.maximum(lower - upper, 0.0)


def _above(distance: Floats, widths: tuple[float, ...], line: int) -> Floats:
    """Probability that a loss is above a line, with the axes distance, width and gap."""
    beyond = distance[:, None, None] - line * GAPS
    return 1 / (1 + np.exp(np.clip(-beyond / np.array(widths)[:, None], -500, 500)))
