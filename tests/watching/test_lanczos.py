"""Spectral norms: against decompositions, after jumps, and of matrices that are not finite or not full."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from trimtab import probes, watch
from trimtab.watching.lanczos import largest_eigenvalues


def of(matrix: Tensor, steps: int) -> tuple[float, Tensor]:
    def products(vectors: list[Tensor]) -> list[Tensor]:
        return [matrix.mT @ (matrix @ vectors[0])]

    start = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(0)).to(matrix)
    values, vectors = largest_eigenvalues(products, [start], steps)  # pyright: ignore[reportArgumentType]
    return float(values[0]), vectors[0]


def test_the_value_of_a_random_matrix_is_near_and_never_above_that_of_a_decomposition() -> None:
    matrix = torch.randn(300, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = float(torch.linalg.svdvals(matrix)[0]) ** 2
    errors = [1 - of(matrix, steps)[0] / exact for steps in (5, 16, 40)]
    assert all(error >= -1e-12 for error in errors)
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.03
    assert errors[2] < 1e-3


@pytest.mark.parametrize("steps", [4, 8, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_of_few_singular_values_is_exact_however_many_steps_follow(steps: int, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(2)
    left = torch.linalg.qr(torch.randn(9, 3, generator=source, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(6, 3, generator=source, dtype=torch.float64)).Q
    matrix = (left @ torch.diag(torch.tensor([5.0, 2.0, 0.5], dtype=torch.float64)) @ right.mT).to(dtype)
    value, vector = of(matrix, steps)
    assert value == pytest.approx(25, rel=1e-5 if dtype is torch.float32 else 1e-10)
    assert float((matrix @ vector).norm()) == pytest.approx(5, rel=1e-5)


def test_a_matrix_of_zeros_has_the_value_zero() -> None:
    value, vector = of(torch.zeros(4, 3), 5)
    assert value == 0
    assert vector.isfinite().all()


def test_a_sudden_jump_in_another_direction_is_seen_at_the_next_reading() -> None:
    """A power iteration that goes on from the last direction reads a quarter of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128, bias=False))
    with watch(model, probes.named("spectral_norm")) as watching:
        for _ in range(3):
            watching.read()
        with torch.no_grad():
            first = torch.linalg.svd(model[0].weight)
            left, right = first.U[:, -1], first.Vh[-1]  # orthogonal to the direction that was followed
            model[0].weight += 4 * first.S[0] * torch.outer(left, right)
        exact = float(torch.linalg.svdvals(model[0].weight.detach())[0])
        assert watching.read()["weight/0/spectral_norm"] == pytest.approx(exact, rel=1e-4)


def test_entries_that_are_not_finite_are_left_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8, bias=False))
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
        model[0].weight[3, 2] = math.inf
    exact = float(torch.linalg.svdvals(model[0].weight.detach().nan_to_num(0, 0, 0))[0])
    with watch(model, probes.named("spectral_norm", "stable_rank", "non_finite")) as watching:
        model(torch.ones(1, 12))
        row = watching.read()
    assert row["weight/0/spectral_norm"] == pytest.approx(exact, rel=1e-5)
    assert row["weight/0/non_finite"] == 2
    assert math.isfinite(row["weight/0/stable_rank"])
