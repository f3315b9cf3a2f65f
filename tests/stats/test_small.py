"""The small statistics: centred isotonic regression, tau-b, LR sensitivity, intervals of small samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.stats.intervals import mean_interval, pooled_sd, wilson
from trimtab.stats.isotonic import centred_isotonic_level
from trimtab.stats.posterior import EdgeEvidence
from trimtab.stats.rank import kendall_tau_b
from trimtab.stats.sensitivity import lr_sensitivity

# --- centred isotonic regression --------------------------------------------------------------------------------------


def rates(table: dict[float, tuple[int, int]]) -> EdgeEvidence:
    """From {x: (failures, runs)}."""
    return EdgeEvidence.of([(x, i < failures) for x, (failures, runs) in table.items() for i in range(runs)])


def test_rates_in_order_are_joined_by_straight_lines() -> None:
    assert centred_isotonic_level(rates({0: (0, 4), 1: (1, 4), 2: (3, 4), 3: (4, 4)})) == pytest.approx(1.5)


def test_two_rates_in_the_wrong_order_become_one_at_their_centre() -> None:
    # 3/4 at 1 and 1/4 at 2 pool to 1/2 at 1.5
    assert centred_isotonic_level(rates({0: (0, 4), 1: (3, 4), 2: (1, 4), 3: (4, 4)})) == pytest.approx(1.5)


def test_a_pool_is_centred_by_its_numbers_of_runs() -> None:
    # 2/2 at 1 and 1/4 at 2 pool to 1/2 at (2 x 1 + 4 x 2) / 6
    assert centred_isotonic_level(rates({0: (0, 4), 1: (2, 2), 2: (1, 4), 3: (4, 4)})) == pytest.approx(10 / 6)


def test_a_violation_reaches_back_as_far_as_it_must() -> None:
    # 2/4, 3/4, 0/4 pool to 5/12 at 2; the next rate, 4/4, lies at 4
    trials = rates({0: (0, 4), 1: (2, 4), 2: (3, 4), 3: (0, 4), 4: (4, 4)})
    assert centred_isotonic_level(trials) == pytest.approx(2 + 2 * (1 / 2 - 5 / 12) / (7 / 12))


def test_equal_rates_strictly_inside_are_pooled() -> None:
    # 1/4 twice is one point at 1.5, so a half lies at 1.5 + (3 - 1.5) / 3
    trials = rates({0: (0, 4), 1: (1, 4), 2: (1, 4), 3: (4, 4)})
    assert centred_isotonic_level(trials) == pytest.approx(2.0)


@pytest.mark.parametrize("lowest", [-7, -3, 0])
def test_more_levels_that_never_fail_do_not_move_a_sharp_edge(lowest: int) -> None:
    table = {float(x): (3 * (x >= 2), 3) for x in range(lowest, 3)}
    assert centred_isotonic_level(rates(table)) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({0: (0, 2), 1: (0, 2)}, math.inf),
        ({0: (2, 2), 1: (2, 2)}, -math.inf),
        ({0: (2, 2), 1: (0, 2)}, 0.5),
        ({0: (1, 2)}, 0.0),
        ({0: (0, 1), 1: (1, 4)}, math.inf),
    ],
)
def test_a_level_that_is_never_crossed_is_infinite(table: dict[float, tuple[int, int]], expected: float) -> None:
    assert centred_isotonic_level(rates(table)) == expected


def test_no_runs_have_no_isotonic_level() -> None:
    assert math.isnan(centred_isotonic_level(EdgeEvidence.of([])))


def test_other_levels_are_read_from_the_same_curve() -> None:
    assert centred_isotonic_level(rates({0: (0, 4), 2: (4, 4)}), 0.1) == pytest.approx(0.2)


@given(st.lists(st.tuples(st.integers(-3, 3).map(float), st.booleans()), min_size=1, max_size=20))
def test_the_isotonic_level_does_not_depend_on_the_order_of_runs(pairs: list[tuple[float, bool]]) -> None:
    assert centred_isotonic_level(EdgeEvidence.of(pairs)) == centred_isotonic_level(EdgeEvidence.of(pairs[::-1]))


# --- rank -------------------------------------------------------------------------------------------------------------


def tau_b_by_loops(first: Sequence[float], second: Sequence[float]) -> float:
    concordant = discordant = tied_first = tied_second = pairs = 0
    for i in range(len(first)):
        for j in range(i):
            pairs += 1
            product = (first[i] - first[j]) * (second[i] - second[j])
            concordant += product > 0
            discordant += product < 0
            tied_first += first[i] == first[j]
            tied_second += second[i] == second[j]
    scale = math.sqrt((pairs - tied_first) * (pairs - tied_second))
    return (concordant - discordant) / scale if scale else math.nan


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=15))
def test_tau_b_is_that_of_plain_loops(pairs: list[tuple[int, int]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    assert kendall_tau_b(first, second) == pytest.approx(tau_b_by_loops(first, second), nan_ok=True)


@pytest.mark.parametrize(
    ("first", "second", "tau"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 3, 2, 4], 4 / 6),
        ([1, 1, 2, 3], [1, 2, 3, 4], 5 / math.sqrt(5 * 6)),
        ([12, 2, 1, 12, 2], [1, 4, 7, 1, 0], -0.4714045207910316),
    ],
)
def test_tau_b_has_its_known_values(first: list[int], second: list[int], tau: float) -> None:
    assert kendall_tau_b(first, second) == pytest.approx(tau)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1], [2]), ([1, 1], [1, 2])])
def test_tau_b_is_nan_where_one_side_has_no_order(first: list[float], second: list[float]) -> None:
    assert math.isnan(kendall_tau_b(first, second))


def test_tau_b_refuses_lists_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="2 and 3"):
        kendall_tau_b([1, 2], [1, 2, 3])


# --- sensitivity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finals", "initial", "expected"),
    [
        ([2.0, 2.0, 2.0], 5.0, 0.0),
        ([2.0, 3.0, 4.0], 5.0, 1.0),
        ([2.0, 9.0], 5.0, 1.5),  # worse than untrained counts as untrained
        ([2.0, math.nan, math.inf], 5.0, 2.0),
        ([7.0, 8.0], 5.0, 0.0),
    ],
)
def test_sensitivity_is_the_mean_loss_above_the_best(finals: list[float], initial: float, expected: float) -> None:
    by_octave = {float(octave): [loss] for octave, loss in enumerate(finals)}
    value = lr_sensitivity(by_octave, initial, min(loss for loss in finals if math.isfinite(loss)), 0.0)
    assert value.estimate == pytest.approx(expected)
    assert value.octaves == len(finals)
    assert math.isnan(value.low)  # one run a rate measures no spread


def test_sensitivity_is_nan_without_a_best_loss() -> None:
    assert math.isnan(lr_sensitivity({}, 5.0, math.nan, 0.0).estimate)
    assert math.isnan(lr_sensitivity({0.0: [math.nan]}, 5.0, math.nan, 0.0).estimate)


def test_sensitivity_looks_at_three_decades_about_the_best_rate_and_no_further() -> None:
    inside = {float(octave): [2.0] for octave in range(-4, 5)}
    value = lr_sensitivity(inside | {-5.5: [4.0], 5.5: [4.0]}, 5.0, 2.0, 0.0)
    assert value.estimate == 0.0
    assert value.octaves == 9


def test_runs_of_one_octave_count_as_one_rate() -> None:
    # Many probes near an edge must not weigh more than the flat part of the sweep.
    probed = {0.0: [2.0], 1.0: [3.0], 1.25: [3.0], 0.75: [3.0], 1.1: [3.0]}
    assert lr_sensitivity(probed, 5.0, 2.0, 0.0).estimate == pytest.approx(0.5)


def test_the_interval_of_sensitivity_covers_its_truth() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([0.3, 0.1, 0.0, 0.1, 0.5, 0.9])
    covered = 0
    for _ in range(300):
        losses = {float(x - 2): list(2.0 + truth[x] + 0.1 * rng.standard_normal(4)) for x in range(6)}
        value = lr_sensitivity(losses, 5.0, float(np.mean(losses[0.0])), 0.0)
        covered += value.low <= truth.mean() <= value.high
    assert covered >= 0.91 * 300


# --- intervals --------------------------------------------------------------------------------------------------------


def test_the_mean_interval_has_its_known_value() -> None:
    # mean 3, sd sqrt(2.5), t(4) = 2.7764
    assert mean_interval([1, 2, 3, 4, 5]) == pytest.approx((3, 1.03676, 4.96324), abs=1e-3)


def test_the_mean_interval_of_few_values_is_nan() -> None:
    assert all(math.isnan(x) for x in mean_interval([]))
    mean, low, high = mean_interval([2.5])
    assert mean == 2.5
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(
    ("runs", "t"),
    [(2, 12.7062), (3, 4.30265), (11, 2.22814), (31, 2.04227), (1001, 1.96234)],
)
def test_the_quantile_of_student_is_right(runs: int, t: float) -> None:
    values = list(np.random.default_rng(0).normal(size=runs))
    _, low, high = mean_interval(values)
    assert (high - low) / 2 / (np.std(values, ddof=1) / math.sqrt(runs)) == pytest.approx(t, rel=2e-3)


@pytest.mark.parametrize(("runs", "t"), [(32, 2.03951), (41, 2.02108), (61, 2.00030)])
def test_the_quantile_of_student_has_no_jump_above_30_degrees_of_freedom(runs: int, t: float) -> None:
    test_the_quantile_of_student_is_right(runs, t)


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        (0, 5, (0.0, 0.4345)),
        (0, 10, (0.0, 0.2775)),
        (0, 30, (0.0, 0.1135)),
        (5, 10, (0.2366, 0.7634)),
        (1, 20, (0.0089, 0.2361)),
        (5, 5, (0.5655, 1.0)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilson_has_its_known_values(successes: int, trials: int, expected: tuple[float, float]) -> None:
    assert wilson(successes, trials) == pytest.approx(expected, abs=2e-4)


@given(st.integers(0, 50), st.integers(0, 50))
def test_wilson_holds_the_share_and_is_symmetric(successes: int, others: int) -> None:
    trials = successes + others
    low, high = wilson(successes, trials)
    assert 0 <= low <= (successes / trials if trials else 0.5) <= high <= 1
    assert wilson(others, trials) == pytest.approx((1 - high, 1 - low))


def test_the_pooled_spread_weighs_groups_by_degrees_of_freedom() -> None:
    # squares 2 + 8, degrees 2 + 1; the single value adds nothing
    assert pooled_sd([[1, 2, 3], [10, 14], [7]]) == pytest.approx(math.sqrt(10 / 3))


@pytest.mark.parametrize("groups", [[], [[1.0]], [[1.0], [2.0]]])
def test_the_pooled_spread_needs_a_group_of_two(groups: list[list[float]]) -> None:
    assert math.isnan(pooled_sd(groups))
