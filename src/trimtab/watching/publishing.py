"""From what the meters hold to one row of numbers, in one transfer, and the refusal of a reading that saw nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from trimtab.watching.tensors import Reading


class EmptyReadingError(RuntimeError):
    """A reading was due, but no tensor passed the hooks."""


def row_of(
    step: int, readings: Sequence[Reading], seen: Tensor, dtype: torch.dtype
) -> tuple[dict[str, float], list[float]]:
    """The row of a step, and the numbers of ``seen`` (N,), by the one transfer of a reading.

    Args:
        step: of the reading.
        readings: what the meters found; values without a count are left out.
        seen: entries that passed at each place.
        dtype: to transfer in.
    """
    parts = [part for reading in readings for part in (reading.values, reading.counts)]
    numbers = iter(torch.cat([part.to(dtype) for part in (seen, *parts)]).cpu().tolist())
    passed = [next(numbers) for _ in range(len(seen))]
    row: dict[str, float] = {"step": step}
    for reading in readings:
        values = [next(numbers) for _ in reading.names]
        counts = [next(numbers) for _ in reading.names]
        row |= {n: value for n, value, count in zip(reading.names, values, counts, strict=True) if count > 0}
    return row, passed


def refuse_empty(
    step: int, empty: Collection[str], wanted: Collection[str], *, passes: int, needs_passes: bool
) -> None:
    """Raise where a reading saw nothing of what it was to see.

    Args:
        step: of the reading.
        empty: places that nothing passed.
        wanted: places that are watched.
        passes: forward passes seen.
        needs_passes: whether gradients are read, which takes one.

    Raises:
        EmptyReadingError: if nothing passed any place, or no pass was seen where one is needed.
    """
    if (wanted and set(empty) == set(wanted)) or (needs_passes and passes == 0):
        raise EmptyReadingError(
            f"step {step} was to be read, but no tensor passed the probes. Was the model compiled before, or "
            "several steps after, they were attached? Attach first, then torch.compile. Was another model of the "
            "same class compiled unwatched in this process? torch.compiler.reset() makes it forget that graph. Is "
            "the model called by its own forward, in a pass with gradients? Only such passes count"
        )
