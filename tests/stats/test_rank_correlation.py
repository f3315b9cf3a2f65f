"""Spearman's correlation, within strata and averaged over runs, and whether its intervals cover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.stats.rank import Correlation, mean_correlation, spearman, stratified_spearman

STUDIES, RESAMPLES, LEAST_COVERAGE = 200, 300, 0.91

pairs_of_small_integers = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=15)


def ranks_by_loops(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def moments_by_loops(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Products and squares of centred ranks, the ranks as shares of how many there are."""
    count = len(first)
    a = [rank / count for rank in ranks_by_loops(first)]
    b = [rank / count for rank in ranks_by_loops(second)]
    centre_a, centre_b = math.fsum(a) / count, math.fsum(b) / count
    products = math.fsum((x - centre_a) * (y - centre_b) for x, y in zip(a, b, strict=True))
    return products, math.fsum((x - centre_a) ** 2 for x in a), math.fsum((y - centre_b) ** 2 for y in b)


def stratified_by_loops(first: Sequence[float], second: Sequence[float], strata: Sequence[Any]) -> float:
    products = squares_a = squares_b = 0.0
    for stratum in set(strata):
        rows = [
            row
            for row in range(len(first))
            if strata[row] == stratum and math.isfinite(first[row]) and math.isfinite(second[row])
        ]
        if len(rows) < 3:
            continue
        one = moments_by_loops([first[row] for row in rows], [second[row] for row in rows])
        products, squares_a, squares_b = products + one[0], squares_a + one[1], squares_b + one[2]
    scale = math.sqrt(squares_a * squares_b)
    return products / scale if scale > 1e-12 else math.nan


def same(first: Correlation, second: Correlation) -> bool:
    names = ("estimate", "low", "high", "units", "strata", "visible")
    return all(getattr(first, name) == pytest.approx(getattr(second, name), abs=1e-12, nan_ok=True) for name in names)


# --- one correlation --------------------------------------------------------------------------------------------------


@given(pairs_of_small_integers)
def test_spearman_is_that_of_plain_loops(pairs: list[tuple[int, int]]) -> None:
    first, second = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    expected = stratified_by_loops(first, second, [0] * len(pairs)) if len(pairs) > 2 else math.nan
    if len(pairs) == 2 and first[0] != first[1] and second[0] != second[1]:
        expected = 1.0 if (first[0] < first[1]) == (second[0] < second[1]) else -1.0
    assert spearman(first, second) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("values", [3, 10, 1000])
def test_spearman_is_that_of_scipy_with_and_without_ties(values: int) -> None:
    oracle = pytest.importorskip("scipy.stats").spearmanr
    rng = np.random.default_rng(values)
    for size in (5, 30, 200):
        first, second = rng.integers(values, size=(2, size)).astype(float)
        second = second + first
        assert spearman(first, second) == pytest.approx(float(oracle(first, second).statistic), abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "rho"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3], [1, 3, 2], 0.5),  # 1 - 6 x 2 / (3 x 8)
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 x 4 / (5 x 24)
        ([1, 1, 2], [1, 2, 3], math.sqrt(3) / 2),
    ],
)
def test_spearman_has_its_known_values(first: list[float], second: list[float], rho: float) -> None:
    assert spearman(first, second) == pytest.approx(rho)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1], [2]), ([1, 1, 1], [1, 2, 3]), ([0.1] * 7, range(7))])
def test_spearman_is_nan_where_one_side_has_no_order(first: list[float], second: list[float]) -> None:
    assert math.isnan(spearman(first, second))


@pytest.mark.parametrize("count", range(2, 60))
def test_rounding_does_not_make_an_order_of_ties(count: int) -> None:
    assert math.isnan(spearman([0.1] * count, np.arange(count)))
    assert math.isnan(
        stratified_spearman([0.1] * count, np.arange(count), [0] * count, range(count), resamples=20).estimate
    )


def test_spearman_refuses_lists_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="2 and 3"):
        spearman([1, 2], [1, 2, 3])


@given(pairs_of_small_integers)
def test_monotone_transforms_change_no_rank_correlation(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array([a for a, _ in pairs], float), np.array([b for _, b in pairs], float)
    plain = spearman(first, second)
    assert spearman(np.exp(first), second**3) == pytest.approx(plain, nan_ok=True)
    assert spearman(-first, second) == pytest.approx(-plain, nan_ok=True)
    assert spearman(second, first) == pytest.approx(plain, nan_ok=True)
    strata, runs = [row % 2 for row in range(len(pairs))], [row // 2 for row in range(len(pairs))]
    assert same(
        stratified_spearman(np.exp(first), second**3, strata, runs, resamples=30),
        stratified_spearman(first, second, strata, runs, resamples=30),
    )


# --- within strata ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5) | st.sampled_from([math.nan, math.inf]), st.integers(0, 5), st.sampled_from([0, "a", 2])
        ),
        max_size=25,
    )
)
def test_the_stratified_correlation_is_that_of_plain_loops(rows: list[tuple[float, float, Any]]) -> None:
    first, second, strata = [float(a) for a, _, _ in rows], [float(b) for _, b, _ in rows], [s for _, _, s in rows]
    found = stratified_spearman(first, second, strata, list(range(len(rows))), resamples=10)
    assert found.estimate == pytest.approx(stratified_by_loops(first, second, strata), abs=1e-12, nan_ok=True)


def test_each_resample_is_the_correlation_of_its_rows_written_out() -> None:
    # Multiplicities must act as if the rows of a run drawn twice were there twice.
    rng = np.random.default_rng(3)
    runs = np.repeat(np.arange(6), 4)
    strata = np.tile([0, 1], 12)
    first, second = rng.integers(4, size=(2, 24)).astype(float)
    found = stratified_spearman(first, second, strata.tolist(), runs.tolist(), resamples=400, seed=5)
    drawn = np.random.default_rng(5).multinomial(6, np.full(6, 1 / 6), size=400)
    values: list[float] = []
    for times in drawn:
        rows = [row for row in range(24) for _ in range(times[runs[row]])]
        values.append(stratified_by_loops(first[rows].tolist(), second[rows].tolist(), strata[rows].tolist()))
    spread = np.nanstd(values)
    from trimtab.stats.resampling import expanded_interval

    low, high, visible = expanded_interval(np.array(values), 6)
    assert spread > 0
    assert (found.low, found.high, found.visible) == pytest.approx((low, high, visible), abs=1e-9)


def test_a_seed_that_many_runs_share_is_no_sample_of_many_runs() -> None:
    """The planted confound: 12 arms start from the same 10 draws, whose luck decides both values."""
    rng = np.random.default_rng(4)
    covered = {"runs": 0, "seeds": 0}
    arms, seeds = np.repeat(np.arange(12), 10), np.tile(np.arange(10), 12)
    for _ in range(100):
        luck_a, luck_b = rng.normal(size=(2, 10))
        first, second = luck_a[seeds] + 0.3 * rng.normal(size=120), luck_b[seeds] + 0.3 * rng.normal(size=120)
        for name, units in (("runs", list(range(120))), ("seeds", seeds.tolist())):
            found = stratified_spearman(first, second, arms.tolist(), units, resamples=300)
            covered[name] += found.low <= 0 <= found.high
    assert covered["runs"] < 60, "with runs as units the interval is far too narrow"
    assert covered["seeds"] >= 88


def test_two_crossed_factors_are_resampled_each_on_its_own() -> None:
    rng = np.random.default_rng(5)
    covered = {"seeds": 0, "crossed": 0}
    arms, seeds = np.repeat(np.arange(10), 8), np.tile(np.arange(8), 10)
    for _ in range(100):
        of_arm_a, of_arm_b = rng.normal(size=(2, 10))
        first, second = of_arm_a[arms] + 0.3 * rng.normal(size=80), of_arm_b[arms] + 0.3 * rng.normal(size=80)
        for name, crossed in (("seeds", None), ("crossed", arms.tolist())):
            found = stratified_spearman(first, second, [0] * 80, seeds.tolist(), crossed, resamples=300)
            covered[name] += found.low <= 0 <= found.high
    assert covered["seeds"] < 60, "arms differ by more than their seeds do"
    assert covered["crossed"] >= 88
    one_arm = stratified_spearman(first[:8], second[:8], [0] * 8, seeds[:8].tolist(), [3] * 8, resamples=300)
    assert one_arm == stratified_spearman(first[:8], second[:8], [0] * 8, seeds[:8].tolist(), resamples=300)
    assert one_arm.units == 8


def test_a_correlation_made_by_the_learning_rate_alone_is_gone_within_learning_rates() -> None:
    rng = np.random.default_rng(0)
    rates = np.repeat(np.arange(5.0), 30)
    first, second = rates + 0.5 * rng.normal(size=150), rates + 0.5 * rng.normal(size=150)
    within = stratified_spearman(first, second, rates.tolist(), range(150), resamples=RESAMPLES)
    assert spearman(first, second) > 0.8
    assert abs(within.estimate) < 0.15
    assert within.low < 0 < within.high


def test_strata_with_opposite_offsets_do_not_hide_a_correlation_within() -> None:
    rng = np.random.default_rng(1)
    rates = np.repeat(np.arange(5.0), 30)
    cause = rng.normal(size=150)
    first, second = 10 * rates + cause, -10 * rates + cause
    assert spearman(first, second) < -0.8
    assert stratified_spearman(first, second, rates.tolist(), range(150), resamples=RESAMPLES).estimate == 1.0


def test_rows_that_are_not_finite_are_left_out() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 20))
    strata, runs = [row % 2 for row in range(20)], [row // 2 for row in range(20)]
    spoilt_first = np.concatenate([first, [math.nan, math.inf, 1.0, 1.0]])
    spoilt_second = np.concatenate([second, [1.0, 1.0, -math.inf, math.nan]])
    plain = stratified_spearman(first, second, strata, runs, resamples=50)
    spoilt = stratified_spearman(
        spoilt_first, spoilt_second, [*strata, 0, 1, 0, 1], [*runs, 90, 91, 0, 1], resamples=50
    )
    assert same(plain, spoilt)
    assert plain.units == 10


def test_strata_with_fewer_than_three_rows_are_left_out() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(2, 10))
    plain = stratified_spearman(first, second, [0] * 10, range(10), resamples=50)
    more = stratified_spearman(
        [*first, 5, 6, 7], [*second, 7, 6, 5], [*[0] * 10, "b", "b", ("c", 1)], range(13), resamples=50
    )
    assert same(plain, more)
    assert (plain.units, plain.strata) == (10, 1)


def test_runs_and_strata_may_be_of_mixed_types_and_a_number_is_not_its_name() -> None:
    values = list(range(6))
    found = stratified_spearman(values, values, [0, 0, 0, "0", "0", "0"], [1, "1", (1,), 2, "2", None], resamples=50)
    assert (found.estimate, found.units, found.strata) == (1.0, 6, 2)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_rows_have_no_correlation(count: int) -> None:
    found = stratified_spearman(range(count), range(count), [0] * count, range(count), resamples=20)
    assert math.isnan(found.estimate)
    assert (found.units, found.strata) == (0, 0)


@pytest.mark.parametrize("runs", [1, 2])
def test_one_or_two_runs_have_a_correlation_and_no_interval(runs: int) -> None:
    found = stratified_spearman(range(8), range(8), [0] * 8, [row % runs for row in range(8)], resamples=20)
    assert found.estimate == 1.0
    assert math.isnan(found.low)
    assert math.isnan(found.visible)


def test_the_same_seed_gives_the_same_interval_and_another_one_another() -> None:
    rng = np.random.default_rng(7)
    first, second = rng.normal(size=(2, 30))
    one, again, other = (
        stratified_spearman(first, second, [0] * 30, range(30), resamples=50, seed=seed) for seed in (0, 0, 1)
    )
    assert one == again
    assert one.estimate == other.estimate
    assert one.low != other.low


def test_more_rows_of_the_same_runs_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(8)
    first, second = rng.normal(size=(2, 40))
    once = stratified_spearman(first, second, [0] * 40, range(40), resamples=RESAMPLES)
    copied = stratified_spearman(
        np.tile(first, 5),
        np.tile(second, 5),
        np.repeat(range(5), 40).tolist(),
        np.tile(range(40), 5).tolist(),
        resamples=RESAMPLES,
    )
    assert copied.estimate == pytest.approx(once.estimate)
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


# --- a mean over runs -------------------------------------------------------------------------------------------------


def test_the_mean_correlation_leaves_out_runs_without_one() -> None:
    found = mean_correlation([0.1, math.nan, 0.5, 0.3], resamples=50)
    assert found.estimate == pytest.approx(0.3)
    assert found.units == 3
    assert found == mean_correlation([0.1, 0.5, 0.3], resamples=50)
    assert 0.1 - 1e-12 <= found.low < found.estimate < found.high <= 0.5 + 1e-12


@pytest.mark.parametrize("correlations", [[], [math.nan], [math.nan, math.nan]])
def test_no_correlations_have_no_mean(correlations: list[float]) -> None:
    found = mean_correlation(correlations)
    assert math.isnan(found.estimate)
    assert found.units == 0


def test_equal_correlations_leave_no_doubt() -> None:
    found = mean_correlation([0.25] * 6, resamples=50)
    assert (found.estimate, found.low, found.high, found.visible) == pytest.approx((0.25, 0.25, 0.25, 0.0))


def test_an_effect_of_the_visible_size_is_seen_four_times_in_five() -> None:
    rng = np.random.default_rng(11)
    size = mean_correlation(rng.normal(scale=0.2, size=4000), resamples=2000).visible * math.sqrt(4000 / 30)
    found = [mean_correlation(size + rng.normal(scale=0.2, size=30), resamples=RESAMPLES) for _ in range(300)]
    assert 0.70 < np.mean([one.low > 0 for one in found]) < 0.90


# --- coverage ---------------------------------------------------------------------------------------------------------


def autocorrelated(rng: np.random.Generator, shape: tuple[int, ...], steps: int, phi: float = 0.9) -> np.ndarray:
    """Stationary AR(1) series of variance 1, (*shape, steps)."""
    series = rng.normal(size=(*shape, steps))
    for step in range(1, steps):
        series[..., step] = phi * series[..., step - 1] + math.sqrt(1 - phi**2) * series[..., step]
    return series


def within_runs(rng: np.random.Generator, runs: int, steps: int = 40) -> np.ndarray:
    """Spearman's correlation within each of many runs of two series that share half of their variance."""
    common, own, other = autocorrelated(rng, (3, runs), steps)
    a, b = (np.argsort(np.argsort(common + one, -1), -1) - (steps - 1) / 2 for one in (own, other))
    return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def test_the_fast_correlations_of_the_simulation_are_those_under_test() -> None:
    common, own, other = autocorrelated(np.random.default_rng(0), (3, 5), 40)
    expected = [spearman(a, b) for a, b in zip(common + own, common + other, strict=True)]
    assert within_runs(np.random.default_rng(0), 5) == pytest.approx(expected)


def share(found: Sequence[Correlation], truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in found]))


@pytest.mark.parametrize("runs", [12, 40])
def test_the_interval_of_a_mean_over_autocorrelated_runs_covers(runs: int) -> None:
    rng = np.random.default_rng(runs)
    truth = float(within_runs(rng, 100_000).mean())
    found = [mean_correlation(within_runs(rng, runs), resamples=RESAMPLES, seed=study) for study in range(STUDIES)]
    assert 0.2 < truth < 0.6
    assert share(found, truth) >= LEAST_COVERAGE


Study = tuple[np.ndarray, np.ndarray, list[Any], list[int]]


def one_reading(rng: np.random.Generator) -> Study:
    """40 runs at 4 learning rates, which move both values."""
    rates = np.repeat(np.arange(4), 10)
    common = rng.normal(size=40)
    return 2 * rates + common + rng.normal(size=40), rates + common + rng.normal(size=40), rates.tolist(), [*range(40)]


def five_readings(rng: np.random.Generator, runs: int = 60) -> Study:
    """Each run read at 5 steps, nearly the same each time: 300 rows, and 60 things to know."""
    rates = np.repeat(np.arange(4), runs // 4)
    common = rng.normal(size=runs)
    level_a, level_b = rates + common + rng.normal(size=runs), rates + common + rng.normal(size=runs)
    first = level_a + 0.2 * rng.normal(size=(5, runs)) + np.arange(5)[:, None]
    second = level_b + 0.2 * rng.normal(size=(5, runs)) - np.arange(5)[:, None]
    strata = [(step, int(rate)) for step in range(5) for rate in rates]
    return first.ravel(), second.ravel(), strata, np.tile(np.arange(runs), 5).tolist()


def true_value(draw: Any, rng: np.random.Generator) -> float:
    """The mean of the estimate itself, so that its bias in small strata is no part of the question."""
    return float(np.mean([stratified_spearman(*draw(rng), resamples=2).estimate for _ in range(1000)]))


def test_the_interval_within_strata_covers_with_one_reading_a_run() -> None:
    rng = np.random.default_rng(21)
    truth = true_value(one_reading, rng)
    found = [stratified_spearman(*one_reading(rng), resamples=RESAMPLES, seed=study) for study in range(STUDIES)]
    assert 0.3 < truth < 0.6
    assert share(found, truth) >= LEAST_COVERAGE


def test_the_interval_within_strata_covers_with_readings_that_are_near_copies() -> None:
    rng = np.random.default_rng(22)
    truth = true_value(five_readings, rng)
    over_runs: list[Correlation] = []
    over_rows: list[Correlation] = []
    for study in range(STUDIES):
        first, second, strata, runs = five_readings(rng)
        over_runs.append(stratified_spearman(first, second, strata, runs, resamples=RESAMPLES, seed=study))
        # Every row a run of its own is the naive bootstrap over rows.
        over_rows.append(stratified_spearman(first, second, strata, range(300), resamples=RESAMPLES, seed=study))
    assert 0.3 < truth < 0.6
    assert share(over_runs, truth) >= LEAST_COVERAGE
    assert share(over_rows, truth) < 0.8
