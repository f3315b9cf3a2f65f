"""Cohen's kappa of two runs, and its mean over all pairs of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.stats.agreement import agreement, cohens_kappa

pairs_of_labels = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


def kappa_by_loops(first: Sequence[int], second: Sequence[int]) -> float:
    count = len(first)
    seen = sum(a == b for a, b in zip(first, second, strict=True)) / count
    together = sum(a == b for a in first for b in second)  # out of count^2, in whole numbers
    return math.nan if together == count**2 else (seen - together / count**2) / (1 - together / count**2)


def labels(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@given(pairs_of_labels)
def test_kappa_is_that_of_plain_loops(pairs: list[tuple[int, int]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    expected = kappa_by_loops(first, second)
    assert cohens_kappa(labels(*first), labels(*second)) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("kinds", [2, 5, 300])
def test_kappa_is_that_of_scikit_learn(kinds: int) -> None:
    oracle = pytest.importorskip("sklearn.metrics").cohen_kappa_score
    rng = np.random.default_rng(kinds)
    first = rng.integers(kinds, size=500)
    second = np.where(rng.random(500) < 0.6, first, rng.integers(kinds, size=500))
    assert cohens_kappa(first, second) == pytest.approx(float(oracle(first, second)), abs=1e-12)


@given(pairs_of_labels)
def test_kappa_is_symmetric_and_at_most_one(pairs: list[tuple[int, int]]) -> None:
    first, second = labels(*(a for a, _ in pairs)), labels(*(b for _, b in pairs))
    forth, back = cohens_kappa(first, second), cohens_kappa(second, first)
    assert forth == pytest.approx(back, abs=1e-12, nan_ok=True)
    assert math.isnan(forth) or forth <= 1 + 1e-12


@given(pairs_of_labels)
def test_what_the_labels_are_called_changes_no_kappa(pairs: list[tuple[int, int]]) -> None:
    names = np.array([7, 0, 50_000, 3])
    first, second = labels(*(a for a, _ in pairs)), labels(*(b for _, b in pairs))
    plain = cohens_kappa(first, second)
    assert cohens_kappa(names[first], names[second]) == pytest.approx(plain, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_identical_labels_of_every_whole_type_have_kappa_one(dtype: type) -> None:
    values = np.array([0, 1, 2, 100, 100], dtype=dtype)
    assert cohens_kappa(values, values) == pytest.approx(1.0)


def test_labels_of_any_shape_are_compared_place_by_place() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(3, size=(2, 4, 5, 6))
    assert cohens_kappa(first, second) == cohens_kappa(first.ravel(), second.ravel())


@pytest.mark.parametrize(
    ("first", "second", "kappa"),
    [
        (labels(0, 1), labels(1, 0), -1.0),
        (labels(0, 0, 1, 1), labels(0, 1, 0, 1), 0.0),
        (labels(3, 3), labels(4, 4), 0.0),
        (labels(0, 0, 0, 1), labels(0, 0, 1, 1), 0.5),  # (3/4 - 1/2) / (1 - 1/2)
    ],
)
def test_kappa_has_its_known_values(first: np.ndarray, second: np.ndarray, kappa: float) -> None:
    assert cohens_kappa(first, second) == pytest.approx(kappa)


def test_independent_labels_have_a_kappa_near_zero_however_uneven_they_are() -> None:
    rng = np.random.default_rng(1)
    first, second = (rng.choice(3, p=[0.9, 0.07, 0.03], size=100_000) for _ in range(2))
    assert np.mean(first == second) > 0.8
    assert abs(cohens_kappa(first, second)) < 0.02


@pytest.mark.parametrize("count", [1, 3, 7, 10, 49])
def test_kappa_is_nan_where_both_always_say_the_same(count: int) -> None:
    assert math.isnan(cohens_kappa(np.full(count, 3), np.full(count, 3)))


def test_kappa_refuses_other_shapes_and_no_labels() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        cohens_kappa(labels(1, 2), labels(1, 2, 3))
    with pytest.raises(ValueError, match="cannot be compared"):
        cohens_kappa(labels(), labels())


def noisy_runs(rng: np.random.Generator, runs: int, items: int = 60) -> list[np.ndarray]:
    """Runs that follow one truth, each as far as it can."""
    truth = rng.integers(3, size=items)
    skill = rng.uniform(0.4, 0.9, size=runs)
    return [np.where(rng.random(items) < one, truth, rng.integers(3, size=items)) for one in skill]


@pytest.mark.parametrize("runs", [3, 4, 7])
def test_the_mean_kappa_and_its_jackknife_are_those_of_plain_loops(runs: int) -> None:
    predictions = noisy_runs(np.random.default_rng(runs), runs)
    found = agreement(predictions)

    def mean_kappa(used: Sequence[int]) -> float:
        values = [kappa_by_loops(predictions[i].tolist(), predictions[j].tolist()) for i in used for j in used if i < j]
        return math.fsum(values) / len(values)

    without = [mean_kappa([run for run in range(runs) if run != left]) for left in range(runs)] if runs > 2 else []
    centre = math.fsum(without) / runs
    error = math.sqrt((runs - 1) / runs * math.fsum((value - centre) ** 2 for value in without))
    t = {3: 4.302653, 4: 3.182446, 7: 2.446912}[runs]
    assert found.mean == pytest.approx(mean_kappa(range(runs)), abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(t * error, rel=1e-5)
    assert (found.high + found.low) / 2 == pytest.approx(found.mean)
    assert found.with_first == pytest.approx([cohens_kappa(predictions[0], other) for other in predictions[1:]])


def test_the_order_of_runs_changes_no_mean() -> None:
    predictions = noisy_runs(np.random.default_rng(0), 5)
    found, reversed_order = agreement(predictions), agreement(predictions[::-1])
    assert (found.mean, found.low, found.high) == pytest.approx(
        (reversed_order.mean, reversed_order.low, reversed_order.high)
    )


def test_identical_runs_agree_without_doubt() -> None:
    found = agreement([np.arange(5)] * 4)
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.with_first == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("runs", [0, 1])
def test_fewer_than_two_runs_have_no_agreement(runs: int) -> None:
    found = agreement([labels(0, 1, 2)] * runs)
    assert math.isnan(found.mean)
    assert found.with_first == ()


def test_two_runs_have_an_agreement_and_no_interval() -> None:
    found = agreement([labels(0, 0, 0, 1), labels(0, 0, 1, 1)])
    assert found.mean == pytest.approx(0.5)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.nightly
def test_the_interval_of_the_mean_kappa_covers() -> None:
    rng = np.random.default_rng(2)
    # Runs of a study share what is asked of them, so the truth is that of the items, over runs without end.
    covered = 0
    for _ in range(100):
        truth = rng.integers(3, size=100)

        def draw(runs: int, truth: np.ndarray = truth) -> list[np.ndarray]:
            skill = rng.uniform(0.3, 0.9, size=runs)
            return [np.where(rng.random(100) < one, truth, rng.integers(3, size=100)) for one in skill]

        found, many = agreement(draw(8)), agreement(draw(60)).mean
        covered += found.low <= many <= found.high
    assert covered / 100 >= 0.88
