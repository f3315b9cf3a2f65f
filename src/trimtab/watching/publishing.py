"""From the readings of the meters to one row of numbers, in one transfer; a reading that saw nothing is refused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.probe import Summary
from trimtab.watching.digest import digested
from trimtab.watching.errors import EmptyReadingError
from trimtab.watching.meter import Reading
from trimtab.watching.metric import MetricKey, Place

PADDING = Place("padding", "model")


def padding_of(counts: Tensor) -> Reading:
    """What is known of padding.

    Args:
        counts: passes with a mask, passes, padded positions, and all positions of the masks, (4,).
    """
    known, passes, padded, positions = counts.unbind()
    return Reading(
        [PADDING.metric("known"), PADDING.metric("share")],
        torch.stack((known / passes, padded / positions)),
        torch.stack((passes, positions)),
    )


def row_of(
    step: int, readings: Sequence[Reading], passed: Tensor, summary: Summary | None
) -> tuple[dict[str, float], list[float]]:
    """The row of a step, and the numbers of ``passed`` (N,), by the one transfer of a reading.

    Args:
        step: of the reading.
        readings: of the meters; values without a count are left out.
        passed: entries that passed at each place; all numbers are transferred in its dtype.
        summary: what of the readings the row keeps; None keeps all.
    """
    parts = [part for reading in readings for part in (reading.values, reading.counts)]
    numbers = iter(torch.cat([part.to(passed) for part in (passed, *parts)]).cpu().tolist())
    entries = [next(numbers) for _ in range(len(passed))]
    values_of: dict[MetricKey, float] = {}
    for reading in readings:
        values = [next(numbers) for _ in reading.keys]
        counts = [next(numbers) for _ in reading.keys]
        values_of |= {key: value for key, value, count in zip(reading.keys, values, counts, strict=True) if count > 0}
    if summary is not None:
        values_of = digested(values_of, summary)
    return {"step": step} | {str(key): value for key, value in values_of.items()}, entries


def empty_places(
    step: int, places: Sequence[Place], entries: Sequence[float], *, passes: int, needs_passes: bool
) -> list[str]:
    """The places that no tensor passed, sorted.

    Args:
        step: of the reading.
        places: that are watched in forward passes.
        entries: that passed at each place.
        passes: forward passes seen.
        needs_passes: whether a meter cannot read without one.

    Raises:
        EmptyReadingError: if nothing passed any place, or no pass was seen where one is needed.
    """
    empty = sorted(str(place) for place, count in zip(places, entries, strict=True) if count == 0)
    if (places and len(empty) == len(places)) or (needs_passes and passes == 0):
        raise EmptyReadingError(
            f"step {step} was to be read, but no tensor passed the probes. Was the model compiled before, or "
            "several steps after, they were attached? Attach first, then torch.compile. Was another model of the "
            "same class compiled unwatched in this process? torch.compiler.reset() makes it forget that graph. Is "
            "the model called by its own forward, in a pass with gradients? Only such passes count"
        )
    return empty
