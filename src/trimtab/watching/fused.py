"""Moments of a tensor by a kernel of torch.compile, which reads the tensor once; eager operations read it four times.

Sums of single precision run over short rows, and the rows are added up in float64. A row stays in the first cache,
since a kernel goes over it once for each of its sums. A kernel belongs to a dtype and to the powers that it adds up,
not to a shape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.watching.measure import about_zero, add_pieces, measure, measured_by, of_piece

ROW = 512
LEAST = 1 << 16  # entries from which a kernel pays


def fused_measure(x: Tensor, *, high: bool = True, entries: Tensor | int | None = None) -> Float[Tensor, 7]:
    """The same as ``measure``, with the same arguments, up to the rounding of sums."""
    if x.numel() < LEAST:
        return measure(x, high=high, entries=entries)
    return measured_by(_on_cpu, _kernel(of_piece), x, high, entries)


def try_kernel(device: torch.device) -> None:
    """Compile the kernel that most readings on a device need.

    Raises:
        Exception: whatever torch.compile raises where it cannot work, such as without a C++ compiler.
    """
    fused_measure(torch.zeros(LEAST, device=device), high=False)


def _on_cpu(flat: Tensor, high: bool) -> Tensor:
    whole = len(flat) // ROW * ROW
    *powers, largest = _kernel(_centred if high else _plain)(flat[:whole]).tolist()
    if not math.isfinite(sum(powers)):  # an entry that is not finite, or a power too large
        return measure(flat, high=high)
    moments = torch.tensor([whole, 0.0, *powers, *([] if high else [0.0, 0.0]), largest], dtype=torch.float64)
    return moments if whole == len(flat) else add_pieces(torch.stack((moments, measure(flat[whole:], high=high))))


def _plain(x: Float[Tensor, " entries"]) -> Float[Tensor, 3]:
    """The sum, the sum of squares, and the largest magnitude."""
    y = _in_rows(x)
    sums = (y.sum(1), (y * y).sum(1))
    return torch.stack((*(each.double().sum() for each in sums), y.abs().amax(1).amax().double()))


def _centred(x: Float[Tensor, " entries"]) -> Float[Tensor, 5]:
    """The sums of four powers, from distances to the mean of each row, and the largest magnitude."""
    y = _in_rows(x)
    mean = y.mean(1, keepdim=True)
    z = y - mean
    square = z * z
    sums = (mean[:, 0], z.sum(1), square.sum(1), (square * z).sum(1), (square * square).sum(1))
    powers = about_zero(ROW, *(each.double() for each in sums))
    return torch.stack((*(power.sum() for power in powers), y.abs().amax(1).amax().double()))


def _in_rows(x: Float[Tensor, " entries"]) -> Float[Tensor, "rows entries"]:
    return x.view(-1, ROW).to(torch.promote_types(x.dtype, torch.float32))


@functools.cache
def _kernel(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True)
