"""Largest singular values of many matrices at once, by Lanczos iteration, without a decomposition of any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Products = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""W^T W u for each matrix W, from vectors u."""

SQUARINGS = 20
ROUNDING = 16


def largest_eigenvalues(products: Products, starts: Sequence[Tensor], steps: int) -> tuple[Tensor, list[Tensor]]:
    """The largest eigenvalue of each W^T W, from below, and a unit vector (N,) that attains it.

    The result is exact where W has no more than ``steps`` different singular values, 0 among them, or where one stands
    out. Nothing is read back to the host, so the number of steps is fixed.

    Args:
        products: the matrices, which must have no entry that is not finite.
        starts: a vector (N,) for each; an eigenvector that is orthogonal to it is not found.
        steps: products with each matrix; more than N are as good as N.
    """
    current = [F.normalize(start, dim=0) for start in starts]
    bases: list[list[Tensor]] = [[] for _ in starts]
    diagonals: list[list[Tensor]] = [[] for _ in starts]
    beside: list[list[Tensor]] = [[] for _ in starts]
    scales = [start.new_zeros(()) for start in starts]
    for _ in range(steps):
        for index, product in enumerate(products(current)):
            basis = bases[index]
            basis.append(current[index])
            diagonals[index].append(product @ current[index])
            known = torch.stack(basis)
            # Twice: what rounding leaves of the known directions would come back as a copy of the largest eigenvalue.
            rest = product - known.mT @ (known @ product)
            rest = rest - known.mT @ (known @ rest)
            size = rest.norm()
            scales[index] = torch.maximum(scales[index], product.norm())
            # What is left may be rounding alone: all directions that the start has a share in are known then.
            is_new = size > ROUNDING * torch.finfo(rest.dtype).eps * scales[index]
            beside[index].append(torch.where(is_new, size, 0.0))
            current[index] = torch.where(is_new, rest / size, 0.0)
    small = torch.stack([_tridiagonal(d, b) for d, b in zip(diagonals, beside, strict=True)])
    values, vectors = _top(small)
    directions = [vector.to(basis[0]) @ torch.stack(basis) for vector, basis in zip(vectors, bases, strict=True)]
    return values, directions


def _tridiagonal(diagonal: Sequence[Tensor], beside: Sequence[Tensor]) -> Tensor:
    off = torch.stack(list(beside[:-1])) if len(beside) > 1 else diagonal[0].new_zeros(0)
    return torch.diag(torch.stack(list(diagonal))) + torch.diag(off, 1) + torch.diag(off, -1)


def _top(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue (M,) and eigenvector (M, K) of positive semidefinite matrices (M, K, K), by repeated squaring.

    ``torch.linalg.eigh`` would wait for the device.
    """
    wide = matrices if matrices.device.type == "mps" else matrices.double()
    power = _scaled(wide)
    for _ in range(SQUARINGS):
        power = _scaled(power @ power)
    columns = power.norm(dim=1)
    column = columns.argmax(dim=1)[:, None, None].expand(-1, power.shape[1], 1)
    vector = F.normalize(power.gather(2, column), dim=1)
    return (vector.mT @ wide @ vector).flatten(), vector.squeeze(2)


def _scaled(matrices: Tensor) -> Tensor:
    size = matrices.norm(dim=(1, 2), keepdim=True)
    return matrices / size.clamp(min=torch.finfo(matrices.dtype).tiny)
