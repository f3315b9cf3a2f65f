"""What a reading takes from parameters: which row each belongs to, and its share where it is sharded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trimtab.host import Host, Part, PartView, evaluating, stored_weight

ROLES = {
    Part.Q: "qkv",
    Part.K: "qkv",
    Part.V: "qkv",
    Part.PROJ: "proj",
    Part.FC1: "fc1",
    Part.FC2: "fc2",
    Part.EMBEDDING: "embedding",
    Part.HEAD: "head",
}
MATRICES = (Part.Q, Part.K, Part.V, Part.PROJ, Part.FC1, Part.FC2)
Key = tuple[str, str]


def place(layer: int | None) -> str:
    """The middle part of a metric key."""
    return "model" if layer is None else f"layer.{layer}"


@dataclass(frozen=True, slots=True)
class Weight:
    """The weight of one module that plays a role, or of a module chosen by name."""

    key: Key
    module: nn.Module

    @property
    def stored(self) -> nn.Parameter | None:
        """The parameter behind it."""
        return stored_weight(self.module)

    def effective(self) -> Tensor:
        """The weight that the forward pass uses; reading it alters no state of a parametrization."""
        if not parametrize.is_parametrized(self.module, "weight"):
            return cast(Tensor, self.module.weight).detach()
        rules = cast(Any, self.module).parametrizations.weight
        with evaluating(rules), torch.no_grad():
            return cast(Tensor, self.module.weight).detach()


def weights_of(host: Host) -> list[Weight]:
    """The weights of the roles of a host, each module once, a tied head left to the embedding."""
    found: dict[int, Weight] = {}
    tied: set[int] = set()
    for view in host.find_parts():
        if view.part in ROLES and id(view.module) not in found:
            weight = Weight((f"{ROLES[view.part]}_weight", place(view.layer)), view.module)
            identity = id(view.module if weight.stored is None else weight.stored)  # a product of factors has none
            if identity not in tied:
                tied.add(identity)
                found[id(view.module)] = weight
    return list(found.values())


def matrices_of(host: Host) -> list[tuple[Key, Callable[[], Tensor]]]:
    """Every effective matrix of Q, K, V, Proj, FC1 and FC2 by itself, with its key."""
    views = [view for view in host.find_parts() if view.part in MATRICES]
    alone = [(view.part, view.layer) for view in views]
    keyed: list[tuple[Key, Callable[[], Tensor]]] = []
    for view in views:
        where = place(view.layer)
        if alone.count((view.part, view.layer)) > 1:  # gate and up
            where = f"{where}.{view.attribute}"
        keyed.append(((f"{view.part}_weight", where), partial(_matrix, view)))
    return keyed


def _matrix(view: PartView) -> Tensor:
    with evaluating(view.module), torch.no_grad():
        return view.weight.detach()


def plain(name: str) -> str:
    """A parameter's name without what wrappers put into it after the probes were attached."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")


def local(x: Tensor) -> Tensor:
    """This rank's share of a tensor that may be sharded."""
    return cast(Any, x).to_local() if is_sharded(x) else x


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(x, "device_mesh")


def share(x: Tensor, group: dist.ProcessGroup | None, *, alone: bool) -> float:
    """What this rank's numbers about a tensor count for in a sum over the ranks: 1, or 0 if another rank has the same.

    Args:
        x: the tensor, sharded or not.
        group: the ranks that are summed over.
        alone: whether there is only this rank.
    """
    if alone:
        return 1.0
    if not is_sharded(x):
        return 1.0 if dist.get_rank(group) == 0 else 0.0
    tensor = cast(Any, x)
    coordinates = tensor.device_mesh.get_coordinate() or []
    doubled = (c for c, placement in zip(coordinates, tensor.placements, strict=True) if placement.is_replicate())
    return 1.0 if all(c == 0 for c in doubled) else 0.0


def first_row(x: Tensor) -> int:
    """Index in the whole tensor of the first row this rank holds."""
    if not is_sharded(x):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    tensor = cast(Any, x)
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return int(offset[0])


def squares(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of squares of each tensor, in one fused pass, (N,) in float64 where there is one."""
    norms = torch.stack(cast(Any, torch)._foreach_norm(list(tensors), 2, dtype=_norm_dtype(tensors)))
    return (norms if norms.device.type == "mps" else norms.double()).square()


def _norm_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(x.dtype is torch.float64 for x in tensors) else torch.float32
