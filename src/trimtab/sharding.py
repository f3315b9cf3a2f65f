"""Parameters that are sharded over several processes: the rows that this process holds."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(x, "device_mesh")


def local(x: Tensor) -> Tensor:
    """The rows of a tensor that this process holds; all of them if it is not sharded."""
    return cast(Any, x).to_local() if is_sharded(x) else x


def first_row(x: Tensor) -> int:
    """Index, in the whole tensor, of the first row that this process holds."""
    if not is_sharded(x):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    tensor = cast(Any, x)
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return int(offset[0])


def is_first_replica(x: Tensor) -> bool:
    """Whether this process holds the first copy of its rows of a sharded tensor."""
    tensor = cast(Any, x)
    coordinates = tensor.device_mesh.get_coordinate() or []
    copies = (c for c, placement in zip(coordinates, tensor.placements, strict=True) if placement.is_replicate())
    return all(c == 0 for c in copies)
