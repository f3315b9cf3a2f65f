"""One flat buffer for all numbers of a reading: one reduction over the processes, one transfer to the host."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Merge = Literal["sum", "max"]


@dataclass(frozen=True, slots=True)
class _Region:
    merge: Merge
    start: int
    shape: tuple[int, ...]
    rest: float


class Pack:
    """Named regions of one preallocated buffer, merged over micro-batches and processes by sum or by maximum."""

    def __init__(self) -> None:
        self._regions: dict[str, _Region] = {}
        self._sizes: dict[Merge, int] = {"sum": 0, "max": 0}
        self._buffers: dict[Merge, Tensor] = {}

    def add(self, name: str, shape: tuple[int, ...], merge: Merge = "sum", rest: float = 0.0) -> None:
        """Reserve a region whose value at rest is ``rest``; only before the first ``clear``.

        Raises:
            ValueError: if there is a region of this name.
        """
        if name in self._regions:
            raise ValueError(f"there is a region '{name}' already: give the meter, or its region, another name")
        self._regions[name] = _Region(merge, self._sizes[merge], shape, rest)
        self._sizes[merge] += math.prod(shape)

    def clear(self, device: torch.device, dtype: torch.dtype) -> None:
        """Set every region to rest, allocating the buffer on the first call or when device or dtype changed."""
        for merge, size in self._sizes.items():
            buffer = self._buffers.get(merge)
            if buffer is None or buffer.device != device or buffer.dtype != dtype:
                self._buffers[merge] = torch.zeros(size, device=device, dtype=dtype)
            self._buffers[merge].zero_()
        for name, region in self._regions.items():
            if region.rest != 0:
                self[name].fill_(region.rest)

    def __getitem__(self, name: str) -> Tensor:
        """A view of one region: writes go into the buffer."""
        region = self._regions[name]
        size = math.prod(region.shape)
        return self._buffers[region.merge][region.start : region.start + size].view(region.shape)

    def __contains__(self, name: str) -> bool:
        return name in self._regions

    def reduce(self, group: dist.ProcessGroup | None) -> None:
        """Merge the buffers of all processes in one all-reduce."""
        rank = dist.get_rank(group)
        world = dist.get_world_size(group)
        sums = self._buffers["sum"]
        maxima = self._buffers["max"]
        # A sum can carry maxima too: each process writes its maxima where the others have zeros.
        packed = torch.zeros(len(sums) + world * len(maxima), device=sums.device, dtype=sums.dtype)
        packed[: len(sums)] = sums
        packed[len(sums) :].view(world, -1)[rank] = maxima
        dist.all_reduce(packed, group=group)
        sums.copy_(packed[: len(sums)])
        if len(maxima):
            maxima.copy_(packed[len(sums) :].view(world, -1).amax(0))
