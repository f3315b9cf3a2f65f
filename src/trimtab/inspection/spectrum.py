"""The largest singular value of a stored matrix, by Lanczos iteration, which needs only a few products with it."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", np.float32, np.float64)
LEAST_STEPS = 8  # a start vector almost orthogonal to the leading direction looks converged in the first steps
MOST_STEPS = 80
SMALL = 2.0**-10  # scale of vectors in float32 products: sums of entries near the largest float32 do not overflow
RESIDUAL = 3e-3  # relative to the squared value; the relative error of the singular value is at most half of this


def spectral_norm(matrix: NDArray[np.float32]) -> float:
    """Largest singular value of a finite matrix (M, N): a lower bound, up to the rounding of float32.

    This is Lanczos iteration with full reorthogonalisation on the smaller of the two Gram matrices, which is never
    formed. Products with the matrix are in float32; everything else is in float64.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    steps = min(MOST_STEPS, len(wide))
    basis = np.zeros((steps + 1, len(wide)))
    tridiagonal = np.zeros((steps + 1, steps + 1))
    start = np.random.default_rng(0).standard_normal(len(wide))
    basis[0] = start / np.linalg.norm(start)
    value = 0.0
    for step in range(steps):
        image = _times(basis[step], wide)
        length = float(np.linalg.norm(image))
        tridiagonal[step, step] = length**2
        squares, vectors = np.linalg.eigh(tridiagonal[: step + 1, : step + 1])
        value = math.sqrt(max(0.0, float(squares[-1])))
        if length == 0:
            break
        rest = _times(image / length, wide.T) * length  # normalised, because its square can overflow float32
        for _ in range(2):
            rest -= _combined(_combined(rest, basis[: step + 1].T), basis[: step + 1])
        left = float(np.linalg.norm(rest))
        if left == 0 or (step + 1 >= LEAST_STEPS and left * abs(vectors[-1, -1]) <= RESIDUAL * squares[-1]):
            break
        tridiagonal[step, step + 1] = tridiagonal[step + 1, step] = left
        basis[step + 1] = rest / left
    return value


def _times(vector: NDArray[np.float64], matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Product of a vector (M,) of length at most 1 with (M, N), computed in float32: (N,)."""
    return _combined((vector * SMALL).astype(np.float32), matrix).astype(np.float64) / SMALL


def _combined(vector: NDArray[T], matrix: NDArray[T]) -> NDArray[T]:
    """Product of (M,) with (M, N), on this thread only: idle BLAS threads keep their cores busy."""
    return np.einsum("i,ij->j", vector, matrix)
