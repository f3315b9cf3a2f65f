"""The gradients of one step, with norms that all rules share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from trimtab.sharding import is_sharded, local


class Gradients(Mapping[str, nn.Parameter]):
    """The parameters of a step by name, and the norms of their gradients, which are computed once.

    A norm is that of the whole gradient, also where this process holds a shard of it; the shards of all gradients cost
    one all-reduce together. Norms are computed again only after a gradient was changed other than by ``scale``.

    Args:
        parameters: by name; a parameter may have no gradient.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._norms: Tensor | None = None
        self._shard_norms: Tensor | None = None
        self._total: Tensor | None = None
        self._versions: list[tuple[int, int]] = []

    @classmethod
    def of(cls, parameters: Mapping[str, nn.Parameter]) -> Gradients:
        """The same object if it has norms already; otherwise the gradients of plain parameters."""
        return parameters if isinstance(parameters, cls) else cls(parameters)

    @override
    def __getitem__(self, name: str) -> nn.Parameter:
        return self._parameters[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    @override
    def __len__(self) -> int:
        return len(self._parameters)

    @property
    def present(self) -> list[str]:
        """Names of the parameters that have a gradient, in order."""
        return [name for name, parameter in self._parameters.items() if parameter.grad is not None]

    def norms(self) -> Tensor:
        """L2 norm of each gradient that is present, (N,), in at least fp32; not finite if an entry is not."""
        self._measure()
        assert self._norms is not None
        return self._norms

    def shard_norms(self) -> Tensor:
        """The same, of the entries that this process holds."""
        self._measure()
        assert self._shard_norms is not None
        return self._shard_norms

    def total(self) -> Tensor:
        """L2 norm of all gradients together, 0-dim; 0 without gradients."""
        total = self._total if self._is_known() else None
        if total is None:
            total = self._total = torch.linalg.vector_norm(self.norms())
        return total

    def total_of(self, counted: Tensor) -> Tensor:
        """L2 norm of the gradients at which ``counted`` (N,) is true, 0-dim; the others do not matter, NaN or not."""
        return torch.linalg.vector_norm(torch.where(counted, self.norms(), 0.0))

    @torch.no_grad()
    def scale(self, factors: Tensor, lost: Tensor | None = None) -> None:
        """Multiply the gradients that are present, in place.

        Args:
            factors: one for each gradient (N,), or one for all ().
            lost: gradients that become zero, whatever their entries are, (N,) or (); None for none. A product would
                keep their NaN.
        """
        self._measure()
        assert self._norms is not None
        assert self._shard_norms is not None
        tensors = self._tensors()
        if not tensors:
            return
        each = factors.unbind() if factors.ndim else [factors] * len(tensors)
        cast(Any, torch)._foreach_mul_(tensors, [f.to(x.device) for f, x in zip(each, tensors, strict=True)])
        norms, shards = self._norms * factors, self._shard_norms * factors
        if lost is not None:
            gone = lost.unbind() if lost.ndim else [lost] * len(tensors)
            for x, is_lost in zip(tensors, gone, strict=True):
                x.masked_fill_(is_lost.to(x.device), 0.0)
            norms, shards = torch.where(lost, 0.0, norms), torch.where(lost, 0.0, shards)
        self._norms, self._shard_norms, self._total = norms, shards, None
        self._versions = _versions(tensors)

    def _tensors(self) -> list[Tensor]:
        """The entries that this process holds of each gradient that is present."""
        return [local(p.grad) for p in self._parameters.values() if p.grad is not None]

    def _is_known(self) -> bool:
        """Whether the norms are those of the gradients as they are."""
        return self._norms is not None and _versions(self._tensors()) == self._versions

    @torch.no_grad()
    def _measure(self) -> None:
        if self._is_known():
            return
        tensors = self._tensors()
        self._versions, self._total = _versions(tensors), None
        if not tensors:
            self._norms = self._shard_norms = torch.zeros(0)
            return
        self._shard_norms = _norms_of(tensors)
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        if any(is_sharded(gradient) for gradient in gradients):
            squares = sums_over_shards(self._shard_norms.square(), gradients)
            whole = torch.tensor([not is_sharded(gradient) for gradient in gradients], device=squares.device)
            self._norms = torch.where(whole, self._shard_norms, squares.sqrt())
        else:
            self._norms = self._shard_norms


def statistics_dtype(device: torch.device) -> torch.dtype:
    """The dtype of running statistics of norms: float64 where the device has it.

    An average with a memory of 100 steps loses two digits of float32.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def _versions(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(x.data_ptr(), x._version) for x in tensors]


def _norms_of(tensors: Sequence[Tensor]) -> Tensor:
    device = tensors[0].device
    by_kind: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, x in enumerate(tensors):
        by_kind.setdefault((x.device, x.dtype), []).append(index)
    norms: list[Tensor | None] = [None] * len(tensors)
    for (_, dtype), indices in by_kind.items():
        wide = None if torch.finfo(dtype).bits >= 32 else torch.float32
        found = cast(Any, torch)._foreach_norm([tensors[i] for i in indices], 2.0, dtype=wide)
        for index, norm in zip(indices, found, strict=True):
            norms[index] = norm.to(device)
    return torch.stack([norm for norm in norms if norm is not None])


def sums_over_shards(values: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Sums (N,) over the shards of each tensor, of values (N,) that each process computed from its own shards.

    One all-reduce for each dimension of a mesh that shards. The value of a tensor that is not sharded stays.

    Raises:
        ValueError: if a tensor is a partial sum that is yet to be reduced.
    """
    sums = values.clone()
    groups: dict[tuple[int, int], tuple[Any, list[int]]] = {}
    for index, tensor in enumerate(tensors):
        if not is_sharded(tensor):
            continue
        sharded = cast(Any, tensor)
        for dimension, placement in enumerate(sharded.placements):
            if placement.is_partial():
                raise ValueError("a gradient is a partial sum over processes; reduce it before the rules are applied")
            if placement.is_shard():
                key = (id(sharded.device_mesh), dimension)
                groups.setdefault(key, (sharded.device_mesh.get_group(dimension), []))[1].append(index)
    for group, indices in groups.values():
        chosen = torch.tensor(indices, device=sums.device)
        packed = sums[chosen]
        dist.all_reduce(packed, group=group)
        sums[chosen] = packed
    return sums
