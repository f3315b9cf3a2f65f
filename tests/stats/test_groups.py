"""Letters of arms that cannot be told apart, the line through the losses near an edge, and which limit is above."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.stats.comparison import difference, probability_above
from trimtab.stats.groups import letters
from trimtab.stats.local_line import local_line
from trimtab.stats.posterior import EdgeEvidence, EdgeModel

ARMS = ["a", "b", "c", "d", "e"]
PAIRS = [frozenset(pair) for pair in itertools.combinations(ARMS, 2)]


@given(st.sets(st.sampled_from(PAIRS)))
def test_two_arms_share_a_letter_unless_they_were_told_apart(distinct: set[frozenset[str]]) -> None:
    given_letters = letters(ARMS, distinct)
    for pair in PAIRS:
        one, other = (set(given_letters[arm]) for arm in pair)
        assert bool(one & other) == (pair not in distinct)


@given(st.sets(st.sampled_from(PAIRS)))
def test_a_letter_is_a_largest_group_of_arms_that_were_not_told_apart(distinct: set[frozenset[str]]) -> None:
    sets = [frozenset(s) for n in range(1, 6) for s in itertools.combinations(ARMS, n)]
    whole = [s for s in sets if not any(frozenset(pair) in distinct for pair in itertools.combinations(s, 2))]
    largest = {s for s in whole if not any(s < other for other in whole)}
    given_letters = letters(ARMS, distinct)
    names = set("".join(given_letters.values()))
    assert {frozenset(arm for arm in ARMS if name in given_letters[arm]) for name in names} == largest


def test_letters_follow_the_order_of_the_arms() -> None:
    assert letters(["x", "y", "z"], {frozenset("xz")}) == {"x": "a", "y": "ab", "z": "b"}
    assert letters([], set()) == {}


def test_a_pair_of_unknown_arms_is_refused() -> None:
    with pytest.raises(ValueError, match="not a pair of the arms: q, x"):
        letters(["x", "y"], {frozenset("xq")})


def test_the_line_near_a_place_ignores_what_is_further_away() -> None:
    x = [-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]
    y = [50.0, 1.0, 1.5, 2.0, 2.5, 3.0, -50.0]
    line = local_line(x, y, 0.0, 1.0)
    assert line is not None
    assert (line.slope, line.spread, line.points) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12), 5)


def test_the_spread_about_the_line_is_that_of_the_noise() -> None:
    rng = np.random.default_rng(1)
    x = list(rng.uniform(-1, 1, 4000))
    line = local_line(x, [0.4 * at + 0.08 * float(rng.standard_normal()) for at in x], 0.0, 1.0)
    assert line is not None
    assert line.spread == pytest.approx(0.08, rel=0.05)
    assert line.slope == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize("y", [[1.0, 2.0, 3.0], [1.0, 2.0, math.nan, math.inf]])
def test_too_few_points_have_no_line(y: list[float]) -> None:
    assert local_line([0.0, 0.1, 0.2, 0.3][: len(y)], y, 0.0, 1.0) is None


def test_which_limit_is_above_is_a_matter_of_probability() -> None:
    model = EdgeModel(-4, 2)
    low = EdgeEvidence.of([(-4, False), (-3, False), (-2, True), (-1, True), (0, True)])
    high = EdgeEvidence.of([(-3, False), (-1, False), (0, False), (1, True), (2, True)])
    fits = model.fit({"low": low, "high": high})
    assert probability_above(fits["high"], fits["low"]) > 0.95
    assert probability_above(fits["low"], fits["high"]) == pytest.approx(
        1 - probability_above(fits["high"], fits["low"])
    )
    assert probability_above(fits["low"], fits["low"]) == pytest.approx(0.5)


def test_the_end_of_a_narrower_range_is_no_difference() -> None:
    # Neither arm ever failed, one in a range that ends two octaves lower: nothing tells them apart.
    model = EdgeModel(-6, 2, {"short": (-6, 0), "long": (-6, 2)})
    never = [(float(x), False) for x in range(-6, 1)]
    fits = model.fit({"short": EdgeEvidence.of(never), "long": EdgeEvidence.of([*never, (1, False), (2, False)])})
    assert difference(fits["long"], fits["short"]).p_value > 0.05
