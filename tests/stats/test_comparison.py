"""Differences of limits against Monte-Carlo, Holm against an example by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.stats.comparison import clipped_density, difference, holm, smallest_visible_shift
from trimtab.stats.posterior import EdgeEvidence, EdgeModel, EdgePosterior

MODEL = EdgeModel(-4, 2)
RUNS = st.lists(st.tuples(st.integers(-8, 4).map(lambda k: k / 2), st.booleans()), max_size=10)


def posterior(edge: float, repeats: int = 2) -> EdgePosterior:
    pairs = [(x / 2, x / 2 > edge) for x in range(-8, 5)] * repeats
    return MODEL.fit({"arm": EdgeEvidence.of(pairs)})["arm"]


def constant(failed: bool) -> EdgePosterior:
    return MODEL.fit({"arm": EdgeEvidence.of([(float(x), failed) for x in range(-4, 3)])})["arm"]


@pytest.mark.parametrize("level", [0.5, 0.1])
@pytest.mark.parametrize(("edge", "other"), [(0.2, -1.3), (-1.3, -1.1), (-2.7, 1.7)])
def test_a_difference_is_that_of_draws_held_inside_the_range(edge: float, other: float, level: float) -> None:
    arm, baseline = posterior(edge), posterior(other, 1)
    rng = np.random.default_rng(5)

    def draws(one: EdgePosterior) -> np.ndarray:
        cells = rng.choice(len(one.x50), size=200_000, p=one.density(level) / one.density(level).sum())
        return np.clip(one.x50[cells], one.low, one.high)

    shift = draws(arm) - draws(baseline)
    found = difference(arm, baseline, level)
    low, median, high = np.quantile(shift, (0.025, 0.5, 0.975))
    assert (found.low, found.median, found.high) == pytest.approx((low, median, high), abs=0.07)  # a cell is 1/16
    below, tie = np.mean(shift < 0), np.mean(shift == 0)
    assert found.p_value == pytest.approx(2 * min(below + tie / 2, 1 - below - tie / 2), abs=0.01)


def test_a_shift_between_sharp_edges_is_recovered() -> None:
    found = difference(posterior(0.2, 5), posterior(-1.3, 5))
    assert found.median == pytest.approx(1.5, abs=0.03)
    assert 0 < found.low < 1.5 < found.high
    assert found.p_value < 0.001


def test_an_arm_does_not_differ_from_itself() -> None:
    found = difference(posterior(-1.3), posterior(-1.3))
    assert found.median == pytest.approx(0, abs=1e-6)
    assert found.p_value == pytest.approx(1)


@pytest.mark.parametrize("failed", [False, True])
def test_two_edges_beyond_the_range_are_not_told_apart(failed: bool) -> None:
    found = difference(constant(failed), constant(failed))
    assert found.low <= 0 <= found.high
    assert found.p_value > 0.9


def test_a_difference_never_exceeds_the_tested_range() -> None:
    found = difference(constant(False), constant(True))
    assert found.high <= 6 + 1 / 16
    assert found.p_value < 0.01


def test_clipping_moves_what_lies_outside_to_the_ends_and_loses_nothing() -> None:
    one = posterior(1.7, 1)
    clipped, density = clipped_density(one, 0.5), one.density()
    assert clipped.sum() == pytest.approx(1)
    assert clipped[(one.x50 < -4) | (one.x50 > 2)].sum() == 0
    inside = (one.x50 > -4) & (one.x50 < 2)
    np.testing.assert_array_equal(clipped[inside], density[inside])
    assert clipped[one.x50 == 2].sum() == pytest.approx(density[one.x50 >= 2].sum())
    assert clipped[one.x50 == -4].sum() == pytest.approx(density[one.x50 <= -4].sum())


@settings(max_examples=50, deadline=None)
@given(RUNS, RUNS, st.sampled_from([0.1, 0.5]))
def test_swapping_the_arms_negates_the_difference(
    first: list[tuple[float, bool]], second: list[tuple[float, bool]], level: float
) -> None:
    arms = MODEL.fit({"a": EdgeEvidence.of(first), "b": EdgeEvidence.of(second)})
    there, back = difference(arms["a"], arms["b"], level), difference(arms["b"], arms["a"], level)
    assert (there.low, there.median, there.high) == pytest.approx((-back.high, -back.median, -back.low), abs=1e-6)
    assert there.p_value == pytest.approx(back.p_value)
    assert there.low <= there.median <= there.high
    assert 0 <= there.p_value <= 1


def test_holm_agrees_with_an_example_by_hand() -> None:
    adjusted = holm({"c": 0.03, "a": 0.01, "d": 0.005, "b": 0.04})
    # 4 x 0.005 = 0.02; 3 x 0.01 = 0.03; 2 x 0.03 = 0.06; 1 x 0.04 = 0.04, held at the largest so far
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})


@pytest.mark.parametrize(
    ("given_values", "expected"),
    [
        ({}, {}),
        ({"a": 0.04}, {"a": 0.04}),
        ({"a": 0.6, "b": 0.9}, {"a": 1, "b": 1}),
        ({"a": 0, "b": 1}, {"a": 0, "b": 1}),
    ],
)
def test_holm_keeps_to_probabilities(given_values: dict[str, float], expected: dict[str, float]) -> None:
    assert holm(given_values) == pytest.approx(expected)


@pytest.mark.parametrize("p", [-0.01, 1.01, math.nan])
def test_holm_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm({"a": 0.5, "b": p})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_nor_changes_the_order(values: list[float]) -> None:
    named = {str(i): p for i, p in enumerate(values)}
    adjusted = holm(named)
    assert all(named[k] <= adjusted[k] <= 1 for k in named)
    ranked = sorted(named, key=lambda k: named[k])
    assert all(adjusted[a] <= adjusted[b] for a, b in pairwise(ranked))


def test_the_smallest_visible_shift_is_2_8_standard_deviations_of_the_difference() -> None:
    arm, baseline = posterior(-1.3), posterior(0.2, 1)
    variance = 0.0
    for one in (arm, baseline):
        density = clipped_density(one, 0.5)
        mean = sum(x * p for x, p in zip(one.x50, density, strict=True))
        variance += sum((x - mean) ** 2 * p for x, p in zip(one.x50, density, strict=True))
    assert smallest_visible_shift(arm, baseline) == pytest.approx(2.8 * math.sqrt(variance))


def test_more_runs_make_smaller_shifts_visible() -> None:
    assert smallest_visible_shift(posterior(-1.3, 6), posterior(0.2, 6)) < smallest_visible_shift(
        posterior(-1.3, 1), posterior(0.2, 1)
    )
