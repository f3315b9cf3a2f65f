"""Extend a sweep of learning rates until the best rate of an arm is bracketed by a lower and a higher rate.

A best rate at an end of the swept range is not known to be the best. Every quantity that is relative to the best loss
then depends on where the sweep happened to begin or end.
"""

from __future__ import annotations

from collections.abc import Collection

from trimtab.study.settings import LearningRates
from trimtab.study.trial import SIXTEENTH, Results, Tick

MOST_EXTENSIONS = 4  # rates at each end of the requested range; further away the request is wrong, not the range


def swept_by(arm: str, results: Results) -> tuple[Tick, ...]:
    """Return the rates of the sweep of an arm, ascending; they are the trials of round 0."""
    return tuple(sorted({trial.tick for trial in results if trial.arm == arm and trial.round == 0}))


def bracketed(best: Tick, swept: Collection[Tick]) -> bool:
    """Whether the best rate lies between two swept rates."""
    return bool(swept) and min(swept) < best < max(swept)


def further_rates(
    requested: LearningRates, swept: Collection[Tick], *, lower: bool, higher: bool, most: int = MOST_EXTENSIONS
) -> list[Tick]:
    """Return the next rates of a sweep: at most one below and one above, an interval of the sweep beyond its ends.

    Args:
        requested: the range that the user asked for.
        swept: all rates swept so far; may not be empty.
        lower: whether the sweep is to go on at its low end.
        higher: whether the sweep is to go on at its high end.
        most: largest number of rates beyond each end of the requested range.
    """
    apart = round(requested.octaves_apart * SIXTEENTH)
    below = min(swept) - apart
    above = max(swept) + apart
    rates: list[Tick] = []
    if lower and below >= requested.lowest - most * apart:
        rates.append(Tick(below))
    if higher and above <= requested.highest + most * apart:
        rates.append(Tick(above))
    return rates


def neighbours(requested: LearningRates, swept: Collection[Tick], best: Tick) -> list[Tick]:
    """Return the rates an interval below and above the best one that a coarser sweep passed over.

    Args:
        requested: the range that the user asked for.
        swept: all rates swept so far.
        best: the best of them.
    """
    apart = round(requested.octaves_apart * SIXTEENTH)
    low, high = min(swept), max(swept)
    beside = [Tick(best - apart), Tick(best + apart)]
    return [tick for tick in beside if low < tick < high and not _near(tick, swept, apart)]


def _near(tick: Tick, swept: Collection[Tick], apart: int) -> bool:
    return any(abs(tick - other) < apart for other in swept)
