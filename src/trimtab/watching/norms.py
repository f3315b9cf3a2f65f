"""Sums of squares of many parameters at once, and the statistics that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.probe import Moments, Probe, TensorProbe
from trimtab.watching.measure import CHUNK
from trimtab.watching.meter import Reading
from trimtab.watching.metric import Place

NUM_COLUMNS = 3  # squares, finite entries, entries that are not finite
MOST_TOGETHER = 1 << 24  # entries of a device that are copied together


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of squares over the finite entries, their number, and that of the others, of each tensor: (N, 3).

    In float64 where the device has it.
    """
    if not tensors:
        return torch.zeros(0, NUM_COLUMNS)
    if tensors[0].device.type == "cpu":
        return torch.tensor([_on_cpu(x.detach().reshape(-1)) for x in tensors], dtype=torch.float64)
    buckets: list[list[Tensor]] = [[]]
    for x in tensors:
        if buckets[-1] and sum(y.numel() for y in buckets[-1]) + x.numel() > MOST_TOGETHER:
            buckets.append([])
        buckets[-1].append(x)
    return torch.cat([_together(bucket) for bucket in buckets])


def _on_cpu(flat: Tensor) -> tuple[float, int, int]:
    """Dot products: the norm of a million entries takes three times as long, and is off in the fifth digit."""
    wide = flat.float() if flat.element_size() < 4 else flat
    square = sum(torch.dot(piece, piece).item() for piece in wide.split(CHUNK["cpu"]))
    if math.isfinite(square):
        return square, len(flat), 0
    sound = wide[wide.isfinite()].double()
    return torch.dot(sound, sound).item(), len(sound), len(flat) - len(sound)


def _together(tensors: Sequence[Tensor]) -> Tensor:
    """The same without a branch on values, in a few operations for all tensors."""
    fused = cast(Any, torch)
    sizes = [x.numel() for x in tensors]
    flat = torch.cat([x.detach().reshape(-1) for x in tensors])
    dtype = torch.float32 if flat.device.type == "mps" else torch.float64
    bad = (flat - flat).nan_to_num_(nan=1.0)
    sound = flat.nan_to_num_(0.0, 0.0, 0.0)  # a copy, which nobody else has
    squares = torch.stack(fused._foreach_norm(list(sound.split(sizes)), 2, dtype=dtype)).square()
    number = torch.stack(fused._foreach_norm(list(bad.split(sizes)), 1, dtype=dtype))
    return torch.stack((squares, squares.new_tensor(sizes) - number, number), 1)


def add_rows(
    region: Tensor, places: Sequence[Place], row_of: dict[Place, int], rows: Tensor, shares: Sequence[float]
) -> None:
    """Add rows (N, M) to the rows of their places in a region.

    Args:
        region: of the pack.
        places: of the rows.
        row_of: the row of the region that belongs to each place.
        rows: to be added.
        shares: the factor of each row; see ``Ranks.share``.
    """
    index = torch.tensor([row_of[place] for place in places], device=region.device)
    scale = torch.tensor(shares, device=region.device, dtype=region.dtype)[:, None]
    # A select, not a product: another process's infinity times 0 would be NaN.
    region.index_add_(0, index, torch.where(scale == 0, 0.0, rows.to(region) * scale))


def norm_probes(probes: Sequence[Probe]) -> list[TensorProbe]:
    """The statistics that are read of gradients and updates of parameters: L2 norm, and entries that are not finite."""
    return [probe for probe in probes if isinstance(probe, TensorProbe) and probe.slug in ("l2_norm", "non_finite")]


def of_norms(places: Sequence[Place], table: Tensor, probes: Sequence[TensorProbe]) -> list[Reading]:
    """Readings of statistics that sums of squares suffice for.

    Args:
        places: of the rows of the table.
        table: as ``norms_of`` gives it, (N, 3).
        probes: statistics with ``from_norm``.
    """
    square, count, non_finite = table.unbind(1)
    unknown = torch.full_like(square, torch.nan)
    moments = Moments(count, non_finite, unknown, square, unknown, unknown, unknown)
    entries = count + non_finite
    return [Reading([place.metric(probe.slug) for place in places], probe.value(moments), entries) for probe in probes]


def numbered(places: Sequence[Place]) -> dict[Place, int]:
    """The row of each place in a region with one row a place."""
    return {place: row for row, place in enumerate(places)}
