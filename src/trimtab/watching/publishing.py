"""From the readings of the meters to one row of numbers, in one transfer; a reading that saw nothing is refused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.watching.errors import EmptyReadingError
from trimtab.watching.meter import Reading
from trimtab.watching.metric import Place


def row_of(
    step: int, readings: Sequence[Reading], passed: Tensor, dtype: torch.dtype
) -> tuple[dict[str, float], list[float]]:
    """The row of a step, and the numbers of ``passed`` (N,), by the one transfer of a reading.

    Args:
        step: of the reading.
        readings: of the meters; values without a count are left out.
        passed: entries that passed at each place.
        dtype: to transfer in.
    """
    parts = [part for reading in readings for part in (reading.values, reading.counts)]
    numbers = iter(torch.cat([part.to(dtype) for part in (passed, *parts)]).cpu().tolist())
    entries = [next(numbers) for _ in range(len(passed))]
    row: dict[str, float] = {"step": step}
    for reading in readings:
        values = [next(numbers) for _ in reading.keys]
        counts = [next(numbers) for _ in reading.keys]
        row |= {str(key): value for key, value, count in zip(reading.keys, values, counts, strict=True) if count > 0}
    return row, entries


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
