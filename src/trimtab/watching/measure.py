"""Moments of a tensor: on a CPU in pieces that stay in the cache, on other devices without reading anything back."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.probe import NUM_SUMS

_N = TypeVar("_N", float, Tensor)
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}  # entries measured together; copies stay in the cache


class Measure(Protocol):
    """A function that takes the moments of a tensor; see ``measure``."""

    def __call__(self, x: Tensor, *, high: bool = True, entries: Tensor | int | None = None) -> Float[Tensor, 7]: ...


def measure(x: Tensor, *, high: bool = True, entries: Tensor | int | None = None) -> Float[Tensor, 7]:
    """The moments of one tensor of any shape, in float64; NaN and infinities are counted and left out.

    Args:
        x: the tensor.
        high: whether to add up third and fourth powers; if not, those sums are 0.
        entries: how many entries there are, if some of x are zeros that do not count; None for all.
    """
    flat = x.detach().reshape(-1)
    total = _on_cpu(flat, high) if flat.device.type == "cpu" else in_pieces(of_piece, flat, high)
    return with_entries(total, entries)


def in_pieces(of_piece: Callable[[Tensor, bool], Tensor], flat: Tensor, high: bool) -> Float[Tensor, 7]:
    """The moments of a flat tensor from those of its pieces, whose copies take memory."""
    moments = torch.stack([of_piece(piece, high) for piece in flat.split(CHUNK["cuda"])])
    return torch.cat((moments[:, :NUM_SUMS].sum(0), moments[:, NUM_SUMS:].amax(0)))


def with_entries(moments: Float[Tensor, 7], entries: Tensor | int | None) -> Float[Tensor, 7]:
    """Set the count of moments (7,), in place, to that of ``entries``; the others were zeros that do not count."""
    if entries is not None:
        moments[0] = entries - moments[1]
    return moments


def _about_zero(count: float, mean: _N, first: _N, second: _N, third: _N, fourth: _N) -> tuple[_N, _N, _N, _N]:
    """The sums of the first four powers of entries, from those of their distances to a number close to the mean."""
    squares = second + 2 * mean * first + count * mean**2
    cubes = third + 3 * mean * second + 3 * mean**2 * first + count * mean**3
    fourths = fourth + 4 * mean * third + 6 * mean**2 * second + 4 * mean**3 * first + count * mean**4
    return count * mean + first, squares, cubes, fourths


def _on_cpu(flat: Tensor, high: bool) -> Tensor:
    """The moments of a flat tensor, in pieces: sums that are finite tell that all entries are."""
    sums = [0.0] * NUM_SUMS
    largest = 0.0
    for piece in flat.split(CHUNK["cpu"]) if len(flat) else ():
        found = _of_sound_piece(piece, high)
        if found is None:  # an entry that is not finite, or a power too large
            found = of_piece(piece, high).tolist()
        sums = [total + part for total, part in zip(sums, found[:NUM_SUMS], strict=True)]
        largest = max(largest, found[NUM_SUMS])
    return torch.tensor([*sums, largest], dtype=torch.float64)


def _of_sound_piece(x: Tensor, high: bool) -> list[float] | None:
    """The same of a piece whose sums are finite; else None."""
    # Sums and not dot products, which in single precision lose the small entries beside the outliers of trained models.
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    count = float(len(y))
    total = y.sum().item()
    low, top = (end.item() for end in torch.aminmax(y))
    largest = max(top, -low)
    if not high:
        squares = torch.mul(y, y, out=_scratch(y)[0]).sum().item()
        found = [count, 0.0, total, squares, 0.0, 0.0, largest]
        return found if math.isfinite(found[3] + total) else None
    # Powers of the distance to the mean: those of the entries themselves would leave nothing of a small spread.
    mean = total / count
    z, square = _scratch(y)
    torch.sub(y, mean, out=z)
    torch.mul(z, z, out=square)
    first = z.sum().item()  # what rounding leaves
    second = square.sum().item()
    third = z.mul_(square).sum().item()
    fourth = square.square_().sum().item()
    if not math.isfinite(fourth + total):
        return None
    return [count, 0.0, *_about_zero(count, mean, first, second, third, fourth), largest]


class _Buffers(threading.local):
    """Memory for two copies of a piece: to get it from the system anew takes longer than the arithmetic."""

    def __init__(self) -> None:
        self.of: dict[torch.dtype, Tensor] = {}


_BUFFERS = _Buffers()


def _scratch(piece: Tensor) -> tuple[Tensor, Tensor]:
    both = _BUFFERS.of.get(piece.dtype)
    if both is None:
        with torch.inference_mode(False):  # else the memory could not be written to outside of that mode
            both = _BUFFERS.of[piece.dtype] = torch.empty(2, CHUNK["cpu"], dtype=piece.dtype)
    return both[0, : len(piece)], both[1, : len(piece)]


def of_piece(x: Tensor, high: bool) -> Tensor:
    """The moments of a piece without a branch on its values."""
    # isfinite is ten times slower than arithmetic on a CPU: x - x is 0, or NaN where x is not finite.
    bad = (x - x).nan_to_num_(nan=1.0).sum(dtype=wide(x))  # a sum in half precision would saturate
    y = x.nan_to_num(0.0, 0.0, 0.0).to(wide(x))
    square = y * y
    sums = [x.numel() - bad, bad, y.sum(), square.sum()]
    sums += [(square * y).sum(), square.square().sum()] if high else [bad * 0, bad * 0]
    return torch.stack([*sums, y.abs().amax() if len(y) else bad * 0])


def wide(x: Tensor) -> torch.dtype:
    """The dtype of sums: float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64
