"""Sums of squares of many parameters at once, and the statistics that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.probe import Moments, Probe, TensorProbe
from trimtab.watching.meter import Reading
from trimtab.watching.metric import Place


def squares(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of squares of each tensor, in one fused pass, (N,); in float64 where the device has it."""
    norms = torch.stack(cast(Any, torch)._foreach_norm(list(tensors), 2, dtype=_norm_dtype(tensors)))
    return (norms if norms.device.type == "mps" else norms.double()).square()


def _norm_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(x.dtype is torch.float64 for x in tensors) else torch.float32


def squares_and_sizes(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of squares and number of entries of each tensor, (N, 2)."""
    square = squares(tensors)
    return torch.stack((square, square.new_tensor([float(x.numel()) for x in tensors])), 1)


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
    # A select, not a product: another process's NaN times 0 would still be NaN.
    region.index_add_(0, index, torch.where(scale == 0, 0.0, rows.to(region.dtype) * scale))


def norm_probes(probes: Sequence[Probe]) -> list[TensorProbe]:
    """The statistic that is read of gradients and updates of parameters: their L2 norm."""
    return [probe for probe in probes if isinstance(probe, TensorProbe) and probe.slug == "l2_norm"]


def of_norms(places: Sequence[Place], table: Tensor, probes: Sequence[TensorProbe]) -> list[Reading]:
    """Readings of statistics that sums of squares suffice for.

    Args:
        places: of the rows of the table.
        table: sum of squares and number of entries, (N, 2).
        probes: statistics with ``from_norm``.
    """
    square, count = table.unbind(1)
    unknown = torch.full_like(square, torch.nan)
    moments = Moments(count, count, unknown, unknown, square, unknown, unknown, unknown)
    return [Reading([place.metric(probe.slug) for place in places], probe.value(moments), count) for probe in probes]


def numbered(places: Sequence[Place]) -> dict[Place, int]:
    """The row of each place in a region with one row a place."""
    return {place: row for row, place in enumerate(places)}
