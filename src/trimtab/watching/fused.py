"""Moments of a tensor by a kernel that reads the tensor once; eager operations read it four times.

On a CPU the kernels are those of ``kernels.c``, elsewhere those of torch.compile, which belong to a dtype and to the
powers that they add up, not to a shape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.watching.kernels import POWERS_OF, load, powers, readable
from trimtab.watching.measure import in_pieces, measure, of_piece, with_entries


def fused_measure(x: Tensor, *, high: bool = True, entries: Tensor | int | None = None) -> Float[Tensor, 7]:
    """The same as ``measure``, with the same arguments, up to the rounding of sums.

    What a kernel cannot read on a CPU is measured by ``measure``: float16 and float64, subclasses of tensors, and
    tensors with an entry that is not finite.
    """
    if x.device.type != "cpu":
        return with_entries(in_pieces(_compiled(of_piece), x.detach().reshape(-1), high), entries)
    dense = x if x.is_contiguous() else x.detach().contiguous()
    if not readable(dense, dtypes=POWERS_OF):
        return measure(x, high=high, entries=entries)
    *sums, largest = powers(dense, high=high)
    if not math.isfinite(sum(sums)):  # an entry that is not finite, or a power too large
        return measure(x, high=high, entries=entries)
    return with_entries(torch.tensor([dense.numel(), 0.0, *sums, largest], dtype=torch.float64), entries)


def try_kernel(device: torch.device) -> None:
    """Compile the kernel that most readings on a device need.

    Raises:
        Exception: whatever stops the compiler.
    """
    if device.type in ("cpu", "meta"):  # a model on meta is moved later; most often a CPU reads it
        load()
    else:
        fused_measure(torch.zeros(1 << 10, device=device), high=False)  # a graph for one entry would serve no other


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True)
