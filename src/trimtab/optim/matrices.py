"""Momentum that is orthogonalized matrix by matrix: the update of Muon and MuonH."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.optim.contract import TrainedParameter
from trimtab.sharding import is_sharded, local

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Keller Jordan's quintic: steepest at zero
SMALLEST_NORM = 1e-7
MOST_TOGETHER = 1 << 22  # entries that are orthogonalized together: their copies are the memory of a step


def orthogonalized(x: Tensor, steps: int) -> Tensor:
    """Newton-Schulz iteration in bf16 on a matrix (rows, columns), or on each of a stack of matrices.

    Every singular value becomes about 1. A matrix of zeros stays zero; NaN stays NaN.
    """
    a, b, c = COEFFICIENTS
    turned = x.shape[-2] > x.shape[-1]
    # Contiguous: products of transposed views take nearly twice as long.
    y = (x.mT if turned else x).to(torch.bfloat16, memory_format=torch.contiguous_format)
    y = y / torch.linalg.matrix_norm(y, keepdim=True).clamp(min=SMALLEST_NORM)
    multiply_add = torch.addmm if y.ndim == 2 else torch.baddbmm
    multiply = torch.mm if y.ndim == 2 else torch.bmm
    # Two buffers of each shape, because fresh memory costs as much as a product of small matrices.
    gram = y.new_empty(*y.shape[:-1], y.shape[-2])
    poly, other = torch.empty_like(gram), torch.empty_like(y)
    for _ in range(steps):
        multiply(y, y.mT, out=gram)
        multiply_add(gram, gram, gram, beta=b, alpha=c, out=poly)
        multiply_add(y, poly, y, beta=a, out=other)
        y, other = other, y
    return y.mT if turned else y


def match_rms(shape: torch.Size) -> float:
    """Factor that gives an orthogonal matrix the root mean square of an AdamW update (arXiv 2502.16982)."""
    return 0.2 * math.sqrt(max(shape[-2:]))


def original(shape: torch.Size) -> float:
    """Factor of the original Muon, sqrt(max(1, rows / columns))."""
    return math.sqrt(max(1.0, shape[-2] / shape[-1]))


FACTORS: dict[str, Callable[[torch.Size], float]] = {"match_rms": match_rms, "original": original}


Rows = Sequence[slice | Tensor]


def matrices_of(x: Tensor, rows: Rows, dimension: int) -> list[Tensor]:
    """The matrices within a tensor: one for each part of a fused matrix, by its outputs; or the tensor itself.

    They are views of the tensor where the outputs of a part are contiguous, and copies where they are interleaved.
    """
    if not rows:
        return [x]
    return [x[part] if dimension == 0 else x[:, part] for part in rows]


class OrthogonalMomentum(torch.optim.Optimizer):
    """Orthogonalized momentum of matrices.

    A group has ``momentum``, ``nesterov``, ``ns_steps`` and ``keep_norm``. With ``keep_norm`` a step turns a matrix
    without changing its Frobenius norm (MuonH); its length is the LR times that norm. Without, a step is
    ``lr x factor`` (see ``FACTORS``) after the decoupled weight decay (Muon). If every parameter of a group is a fused
    matrix, ``parts`` lists the outputs of its parts, as [start, end] or as an index tensor, and ``outputs`` is their
    dimension.

    A matrix that is sharded over processes is gathered, and each process keeps its rows of the result.

    Raises:
        ValueError: if a parameter is not a matrix or a stack of matrices.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float) -> None:
        defaults = {
            "momentum": 0.95,
            "nesterov": True,
            "ns_steps": 5,
            "weight_decay": 0.0,
            "factor": "match_rms",
            "keep_norm": False,
            "parts": [],
            "outputs": 0,
            "decoupled_weight_decay": True,
        }
        super().__init__(groups, {"lr": lr, **defaults})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim not in (2, 3):
                    raise ValueError(f"muon takes matrices and stacks of matrices, got a parameter of {tuple(p.shape)}")

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for members in _chunks([p for p in group["params"] if p.grad is not None]):
                self._step(members, group)
        return loss

    def _step(self, members: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        """One step of parameters of equal shape, whose matrices are orthogonalized together."""
        rows = [part if isinstance(part, Tensor) else slice(*part) for part in group["parts"]]
        weights = [_whole(local(p), p) for p in members]
        matrices = [matrices_of(weight, rows, group["outputs"]) for weight in weights]
        directions = [matrices_of(_whole(self._update(p, group), p), rows, group["outputs"]) for p in members]
        if not group["keep_norm"]:
            for matrix in (matrix for each in matrices for matrix in each):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
        turn = _keep_norm if group["keep_norm"] else _subtract
        for part in range(len(matrices[0])):  # parts differ in shape: grouped queries have fewer keys
            turned = _together([direction[part] for direction in directions], group["ns_steps"])
            for each, direction in zip(matrices, turned, strict=True):
                turn(each[part], direction, group)
        for p, weight, each in zip(members, weights, matrices, strict=True):
            for part, matrix in zip(rows, each, strict=False):
                if isinstance(part, Tensor):  # the matrix was a copy
                    weight[part if group["outputs"] == 0 else (slice(None), part)] = matrix
            if is_sharded(p):
                local(p).copy_(_share(weight, p))

    def _update(self, p: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """The momentum of a parameter, after this gradient; the rows that this process holds."""
        gradient = local(cast(Tensor, p.grad))
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(cast(Tensor, p.grad), memory_format=torch.preserve_format)
        buffer = local(state["momentum_buffer"])
        buffer.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer


def _chunks(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters of equal shape and device, up to ``MOST_TOGETHER`` entries at a time."""
    by_kind: dict[object, list[nn.Parameter]] = {}
    for p in parameters:
        by_kind.setdefault((p.shape, p.device, p.dtype), []).append(p)
    chunks: list[list[nn.Parameter]] = []
    for members in by_kind.values():
        size = max(1, MOST_TOGETHER // members[0].numel())
        chunks += [members[start : start + size] for start in range(0, len(members), size)]
    return chunks


def _together(directions: Sequence[Tensor], steps: int) -> Sequence[Tensor]:
    """The orthogonalized matrices, or stacks of them, by one iteration: a batch uses all threads of small matrices."""
    if len(directions) == 1 or directions[0].ndim == 3:
        return [orthogonalized(direction, steps) for direction in directions]
    return orthogonalized(torch.stack(list(directions)), steps).unbind()


def _subtract(matrix: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
    matrix.add_(direction, alpha=-group["lr"] * FACTORS[group["factor"]](matrix.shape))


def _keep_norm(matrix: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
    norm = torch.linalg.matrix_norm(matrix, keepdim=True)
    length = torch.linalg.matrix_norm(direction.to(matrix.dtype), keepdim=True).clamp(min=SMALLEST_NORM)
    turned = matrix - group["lr"] * norm / length * direction.to(matrix.dtype)
    matrix.copy_(turned * (norm / torch.linalg.matrix_norm(turned, keepdim=True).clamp(min=SMALLEST_NORM)))


def _whole(held: Tensor, p: Tensor) -> Tensor:
    """All rows of a tensor that is sharded like a parameter."""
    if not is_sharded(p):
        return held
    from torch.distributed.tensor import DTensor  # a slow import

    sharded = cast(Any, p)
    whole = DTensor.from_local(
        held.detach(), sharded.device_mesh, sharded.placements, run_check=False, shape=p.shape, stride=p.stride()
    )
    return whole.full_tensor().clone()


def _share(whole: Tensor, p: Tensor) -> Tensor:
    """The rows of a tensor, equal on every process, that this process holds of a parameter."""
    from torch.distributed.tensor import distribute_tensor  # a slow import

    sharded = cast(Any, p)
    return distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None).to_local()


def by_layout(members: Sequence[TrainedParameter]) -> list[tuple[dict[str, Any], list[TrainedParameter]]]:
    """Parameters of equal layout together, each with the settings of ``OrthogonalMomentum`` that describe it."""
    layouts: dict[object, tuple[dict[str, Any], list[TrainedParameter]]] = {}
    for member in members:
        parts = [[rows.start, rows.stop] if isinstance(rows, slice) else rows for rows in member.rows]
        key = (str([part if isinstance(part, list) else part.tolist() for part in parts]), member.transposed)
        settings = {"parts": parts, "outputs": int(member.transposed)}
        layouts.setdefault(key, (settings, []))[1].append(member)
    return list(layouts.values())
