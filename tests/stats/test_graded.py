"""The likelihood of losses against a second implementation in plain loops, and against what it must never do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.stats.graded import GAPS, GRADES, LAPSES, MODES, SIDE, UNGRADED, GradedLikelihood
from trimtab.stats.posterior import EdgeEvidence, EdgeModel, EdgePosterior

Runs = Sequence[tuple[float, int]]  # log2 LR and grade

LAPSE_PRIOR = np.array([0.6, 0.3, 0.1])
CENTRES = np.arange(-2, 2.01, 0.25)
WIDTHS = np.array([0.1, 0.4, 1.0])
RUN = st.tuples(st.integers(-8, 8).map(lambda k: k / 4), st.integers(0, GRADES - 1))


def fails(grade: int) -> bool:
    return grade > SIDE


def found(runs: Runs) -> np.ndarray:
    grades = np.array([grade for _, grade in runs], np.intp)
    model = GradedLikelihood(CENTRES, WIDTHS, LAPSE_PRIOR)
    return model.marginal(np.array([x for x, _ in runs]), grades > SIDE, grades)


def posterior(runs: Runs, model: EdgeModel | None = None, *, graded: bool = True) -> EdgePosterior:
    grades = np.array([grade for _, grade in runs], np.intp)
    x = np.array([x for x, _ in runs])
    evidence = EdgeEvidence(x, grades > SIDE, grades if graded else None)
    return (model or EdgeModel(-4, 2)).fit({"arm": evidence})["arm"]


def width(of: EdgePosterior) -> float:
    low, high = of.quantiles((0.025, 0.975))
    return float(high - low)


# --- the oracle -------------------------------------------------------------------------------------------------------


def above(x: float, centre: float, s: float) -> float:
    return 1 / (1 + math.exp(-(x - centre) / s))


def probability(x: float, grade: int, x50: float, s: float, gap: float, mode: int, lapse: float) -> float:
    """Chance of a grade: an ordered logit whose lines are ``gap`` apart, mixed with the profile of its side."""
    edges = [above(x, x50 + step * gap, s) for step in (-2, -1, 0, 1, 2)]
    cells = [1 - edges[0], *(a - b for a, b in itertools.pairwise(edges)), edges[4]]
    side = edges[2] if fails(grade) else 1 - edges[2]
    share = MODES[mode].profile[grade - 3 if fails(grade) else 2 - grade]
    chance = (1 - MODES[mode].ignoring) * cells[grade] + MODES[mode].ignoring * share * side
    return (1 - lapse) * chance + (lapse * share if fails(grade) else 0.0)


def by_force(runs: Runs) -> np.ndarray:
    """The sum over lapses, and on each side over gaps and modes."""
    table = np.zeros((len(CENTRES), len(WIDTHS)))
    for (i, x50), (j, s) in itertools.product(enumerate(CENTRES), enumerate(WIDTHS)):
        for lapse, prior in zip(LAPSES, LAPSE_PRIOR, strict=True):
            product = float(prior)
            for side in (False, True):
                of_side = [run for run in runs if fails(run[1]) == side]
                product *= sum(
                    mode.prior / len(GAPS) * math.prod(probability(x, g, x50, s, gap, m, lapse) for x, g in of_side)
                    for m, mode in enumerate(MODES)
                    for gap in GAPS
                )
            table[i, j] += product
    return table


@pytest.mark.parametrize(
    "runs",
    [
        [(-1.0, 0), (0.0, 2), (0.25, 3), (1.0, 5)],
        [(-1.0, 1), (0.5, 1)],
        [(-1.0, 4), (0.5, 3), (0.75, 5)],
        [(-2.0, 0), (-1.0, 0), (0.0, 5), (-0.5, 3), (1.0, 1)],
    ],
)
def test_the_likelihood_is_that_of_plain_loops(runs: Runs) -> None:
    expected, table = by_force(runs), found(runs)
    np.testing.assert_allclose(table / table.max(), expected / expected.max(), rtol=2e-5, atol=1e-9)  # float32 tables


def test_the_priors_and_the_profiles_sum_to_one() -> None:
    assert sum(mode.prior for mode in MODES) == pytest.approx(1)
    assert [sum(mode.profile) for mode in MODES] == pytest.approx([1] * len(MODES))


def test_without_runs_the_likelihood_is_flat() -> None:
    assert np.ptp(found([])) == 0


# --- what losses say --------------------------------------------------------------------------------------------------


def slope(gap: float, x50: float, rates: Sequence[float]) -> Runs:
    """Runs whose losses rise evenly, by a line every ``gap`` octaves."""
    return [(x, int(np.clip(math.floor((x - x50) / gap) + SIDE + 1, 0, GRADES - 1))) for x in rates]


RATES = (-3.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)


def test_on_a_slope_losses_locate_the_edge_better_than_labels() -> None:
    runs = slope(0.25, -0.1, RATES)
    assert width(posterior(runs)) < 0.75 * width(posterior(runs, graded=False))


def test_on_a_cliff_losses_are_worth_about_as_much_as_labels() -> None:
    runs = [(x, GRADES - 1 if x > 0.1 else 0) for x in RATES]
    assert width(posterior(runs)) == pytest.approx(width(posterior(runs, graded=False)), rel=0.2)


def test_losses_without_order_are_no_more_certain_than_their_labels() -> None:
    """Beyond the line the grades fall at random; a model that believed in distances would see a sharp edge."""
    failing = dict(zip(RATES[6:], (5, 3, 4, 3), strict=True))
    runs = [(x, failing.get(x, (2, 0, 1, 2, 0, 1)[i % 6])) for i, x in enumerate(RATES)]
    assert width(posterior(runs)) > 0.85 * width(posterior(runs, graded=False))


def test_a_run_that_barely_fails_is_nearer_to_the_edge_than_one_that_fails_by_far() -> None:
    common = slope(0.25, -0.1, RATES)
    barely = posterior([*common, (0.75, 3)]).quantiles((0.5,))[0]
    far = posterior([*common, (0.75, 5)]).quantiles((0.5,))[0]
    assert barely > far


@given(runs=st.lists(RUN, max_size=8), octaves=st.integers(-3, 3))
@settings(max_examples=25, deadline=None)
def test_moving_all_learning_rates_moves_the_edge(runs: Runs, octaves: int) -> None:
    moved = posterior([(x + octaves, grade) for x, grade in runs], EdgeModel(-4 + octaves, 2 + octaves))
    np.testing.assert_allclose(moved.weight, posterior(runs).weight, rtol=1e-4, atol=1e-12)


@given(runs=st.lists(RUN, min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_runs_does_not_matter(runs: Runs) -> None:
    np.testing.assert_allclose(posterior(runs[::-1]).weight, posterior(runs).weight, rtol=1e-4, atol=1e-12)


def test_ungraded_runs_are_read_by_their_labels() -> None:
    """A label is the sum of the grades of its side."""
    x = np.array([0.25, -0.5])
    failed = np.array([True, False])
    model = GradedLikelihood(CENTRES, WIDTHS, LAPSE_PRIOR)
    ungraded = model.marginal(x, failed, np.array([UNGRADED, UNGRADED], np.intp))
    expected = np.zeros_like(ungraded)
    for (i, x50), (j, s) in itertools.product(enumerate(CENTRES), enumerate(WIDTHS)):
        for lapse, prior in zip(LAPSES, LAPSE_PRIOR, strict=True):
            first = (1 - lapse) * above(0.25, x50, s) + lapse
            expected[i, j] += prior * first * (1 - lapse) * (1 - above(-0.5, x50, s))
    np.testing.assert_allclose(ungraded / ungraded.max(), expected / expected.max(), rtol=2e-5, atol=1e-9)


def test_arms_are_judged_by_their_own_losses_alone() -> None:
    runs, others = slope(0.25, -0.1, RATES), slope(0.1, 0.6, RATES)
    model = EdgeModel(-4, 2)
    arms = {
        name: EdgeEvidence(
            np.array([x for x, _ in of_arm]),
            np.array([fails(g) for _, g in of_arm]),
            np.array([g for _, g in of_arm], np.intp),
        )
        for name, of_arm in (("own", runs), ("other", others))
    }
    np.testing.assert_array_equal(model.fit(arms)["own"].weight, posterior(runs).weight)
    assert not model.fit(arms)["own"].pooled
