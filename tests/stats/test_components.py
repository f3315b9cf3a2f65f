"""Variance by rows, columns and the rest, with intervals; scores of outliers and the limit of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trimtab.stats.components import Components, grubbs_limit, outlier_scores, two_way_components

TABLES, LEAST_COVERAGE = 400, 0.91
NAMES = ("rows", "columns", "rest")


def components_by_loops(table: np.ndarray) -> tuple[float, float, float]:
    """The textbook sums of squares, by differences of squared sums' definitions written out."""
    rows, columns = table.shape
    value = [[float(x) for x in row] for row in table]
    grand = math.fsum(x for row in value for x in row) / (rows * columns)
    row_mean = [math.fsum(row) / columns for row in value]
    column_mean = [math.fsum(value[i][j] for i in range(rows)) / rows for j in range(columns)]
    mean_rows = columns * math.fsum((one - grand) ** 2 for one in row_mean) / (rows - 1)
    mean_columns = rows * math.fsum((one - grand) ** 2 for one in column_mean) / (columns - 1)
    rest = math.fsum(
        (value[i][j] - row_mean[i] - column_mean[j] + grand) ** 2 for i in range(rows) for j in range(columns)
    ) / ((rows - 1) * (columns - 1))
    return max(0.0, (mean_rows - rest) / columns), max(0.0, (mean_columns - rest) / rows), rest


def variances(found: Components) -> tuple[float, float, float]:
    return found.rows.variance, found.columns.variance, found.rest.variance


def random_table(rng: np.random.Generator, size: tuple[int, int], true: tuple[float, float, float]) -> np.ndarray:
    rows, columns = size
    return (
        math.sqrt(true[0]) * rng.normal(size=(rows, 1))
        + math.sqrt(true[1]) * rng.normal(size=(1, columns))
        + math.sqrt(true[2]) * rng.normal(size=size)
    )


@pytest.mark.parametrize("size", [(2, 2), (2, 7), (5, 3), (6, 6)])
def test_the_estimates_are_those_of_plain_loops(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(size))
    for _ in range(5):
        table = 3 + random_table(rng, size, (1, 0.5, 0.3))
        assert variances(two_way_components(table)) == pytest.approx(components_by_loops(table), abs=1e-12)


def test_the_estimates_have_no_bias_over_many_tables() -> None:
    rng = np.random.default_rng(0)
    found = [components_by_loops(random_table(rng, (6, 6), (1, 0.5, 0.3))) for _ in range(1500)]
    # The hold at 0 hardly ever acts here.
    assert np.mean(found, axis=0) == pytest.approx([1, 0.5, 0.3], rel=0.08)


def test_turning_the_table_swaps_rows_and_columns() -> None:
    table = random_table(np.random.default_rng(1), (4, 6), (1, 0.5, 0.3))
    one, other = two_way_components(table), two_way_components(table.T)
    assert variances(other) == pytest.approx((one.columns.variance, one.rows.variance, one.rest.variance))
    assert other.columns.high == pytest.approx(one.rows.high, rel=0.15)  # other draws
    assert other.rest.high == pytest.approx(one.rest.high, rel=0.15)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_a_change_of_unit_squares_variances_and_leaves_shares(unit: float) -> None:
    table = random_table(np.random.default_rng(2), (5, 5), (1, 0.5, 0.3))
    plain, scaled = two_way_components(table), two_way_components(unit * (table + 7))
    for name in NAMES:
        one, other = getattr(plain, name), getattr(scaled, name)
        assert (other.variance, other.low, other.high) == pytest.approx(
            (one.variance * unit**2, one.low * unit**2, one.high * unit**2), rel=1e-6, abs=1e-9 * unit**2
        )
        assert (other.share, other.share_low, other.share_high) == pytest.approx(
            (one.share, one.share_low, one.share_high), rel=1e-6, abs=1e-9
        )


def test_the_order_of_rows_and_columns_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    table = random_table(rng, (5, 5), (1, 0.5, 0.3))
    moved = table[rng.permutation(5)][:, rng.permutation(5)]
    for name in NAMES:
        one, other = getattr(two_way_components(table), name), getattr(two_way_components(moved), name)
        assert (one.variance, one.low, one.high) == pytest.approx((other.variance, other.low, other.high))


def test_shares_add_up_to_one_and_lie_in_their_intervals() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        found = two_way_components(random_table(rng, (5, 5), (1, 0.0, 0.3)))
        assert found.rows.share + found.columns.share + found.rest.share == pytest.approx(1)
        for name in NAMES:
            one = getattr(found, name)
            assert 0 <= one.low <= one.high
            assert 0 <= one.share_low <= one.share_high <= 1
            assert one.low <= one.variance <= one.high


def test_a_table_of_rows_alone_has_no_other_variance() -> None:
    found = two_way_components(np.repeat(np.array([1.0, 2.0, 4.0])[:, None], 4, axis=1))
    assert found.rows.variance == pytest.approx(7 / 3)
    assert found.rows.share == pytest.approx(1)
    assert (found.columns.variance, found.rest.variance) == pytest.approx((0, 0))


def test_the_same_table_and_seed_give_the_same_intervals() -> None:
    table = random_table(np.random.default_rng(5), (5, 5), (1, 0.5, 0.3))
    assert two_way_components(table) == two_way_components(table.copy())
    assert two_way_components(table).rows.high != two_way_components(table, seed=1).rows.high


@pytest.mark.parametrize("table", [np.zeros((1, 5)), np.zeros((5, 1)), np.full((3, 3), math.nan), np.zeros((0, 3))])
def test_a_table_that_is_too_small_or_not_complete_is_refused(table: np.ndarray) -> None:
    with pytest.raises(ValueError, match="complete table"):
        two_way_components(table)


@pytest.mark.parametrize("true", [(1, 0.5, 0.3), (1, 0, 0.3), (0, 0.5, 0.3), (0, 0, 1)])
@pytest.mark.parametrize("size", [(5, 5), pytest.param((6, 6), marks=pytest.mark.nightly)])
def test_the_intervals_of_the_variances_cover(size: tuple[int, int], true: tuple[float, float, float]) -> None:
    rng = np.random.default_rng([*size, *(int(10 * value) for value in true)])
    covered = np.zeros(3)
    for table in range(TABLES):
        found = two_way_components(random_table(rng, size, true), seed=table)
        for index, name in enumerate(NAMES):
            one = getattr(found, name)
            covered[index] += one.low == 0 if true[index] == 0 else one.low <= true[index] <= one.high
    assert (covered / TABLES >= LEAST_COVERAGE).all()


@pytest.mark.parametrize("size", [(5, 5), pytest.param((6, 6), marks=pytest.mark.nightly)])
def test_the_intervals_of_the_shares_cover(size: tuple[int, int]) -> None:
    rng = np.random.default_rng([*size, 99])
    covered = np.zeros(3)
    true = np.array([1, 0.5, 0.3])
    for table in range(TABLES):
        found = two_way_components(random_table(rng, size, (1, 0.5, 0.3)), seed=table)
        for index, name in enumerate(NAMES):
            one = getattr(found, name)
            covered[index] += one.share_low <= true[index] / true.sum() <= one.share_high
    assert (covered / TABLES >= LEAST_COVERAGE).all()


# --- outliers ---------------------------------------------------------------------------------------------------------


@given(arrays(float, st.integers(3, 12), elements=st.integers(-50, 50).map(float)))
def test_the_scores_are_those_of_plain_loops(values: np.ndarray) -> None:
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    expected = [(value - mean) / deviation if deviation > 1e-9 else 0.0 for value in values]
    assert outlier_scores(values) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("count", [3, 5, 20])
def test_no_score_is_beyond_its_bound_and_one_far_value_reaches_it(count: int) -> None:
    bound = (count - 1) / math.sqrt(count)
    far = outlier_scores(np.array([1e6, *[0.0] * (count - 1)]))
    assert far.max() == pytest.approx(bound)
    rng = np.random.default_rng(count)
    assert all(np.abs(outlier_scores(rng.standard_cauchy(size=count))).max() <= bound + 1e-12 for _ in range(200))
    assert grubbs_limit(count) < bound


def test_values_that_are_not_finite_score_infinity_and_change_no_other_score() -> None:
    values = np.array([1.0, 2.0, 4.0, 3.0])
    spoilt = np.array([1.0, math.nan, 2.0, math.inf, 4.0, -math.inf, 3.0])
    scores = outlier_scores(spoilt)
    assert scores[[0, 2, 4, 6]] == pytest.approx(outlier_scores(values))
    assert np.isposinf(scores[[1, 3, 5]]).all()


@pytest.mark.parametrize("count", range(2, 30))
def test_equal_values_are_no_outliers(count: int) -> None:
    assert np.abs(outlier_scores(np.full(count, 0.1))).max() == 0


def test_no_values_have_no_scores() -> None:
    assert outlier_scores(np.zeros(0)).shape == (0,)


def test_the_scores_leave_their_input_as_it_was() -> None:
    values = np.array([1.0, math.nan, 3.0])
    outlier_scores(values)
    assert np.array_equal(values, [1.0, math.nan, 3.0], equal_nan=True)


@pytest.mark.parametrize(("count", "limit"), [(3, 1.1543), (5, 1.7150), (10, 2.2900), (30, 2.9085), (100, 3.3841)])
def test_the_limit_has_its_known_values(count: int, limit: float) -> None:
    assert grubbs_limit(count) == pytest.approx(limit, abs=1e-3)


@pytest.mark.parametrize("count", [4, 5, 10, 40])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_the_limit_is_exceeded_as_often_as_it_says(count: int, level: float) -> None:
    values = np.random.default_rng(count).normal(size=(20_000, count))
    scores = np.abs(values - values.mean(1, keepdims=True)) / values.std(1, ddof=1, keepdims=True)
    # Bonferroni's bound is exact only where no two values can exceed at once; it is nearly so otherwise.
    assert 0.9 * level - 0.006 < float((scores.max(1) > grubbs_limit(count, level)).mean()) < level + 0.006


@pytest.mark.parametrize("count", [0, 1, 2])
def test_nothing_is_an_outlier_among_fewer_than_three(count: int) -> None:
    assert grubbs_limit(count) == math.inf
