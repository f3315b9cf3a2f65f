"""What saves runs: a sweep that begins with every second rate, and limits that are estimated from losses."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from limit_studies import BEST, CRITERION, LEARNED, UNIGRAM, Loss, carry_out, conclude, edges, outcome, slope, study

from trimtab.config import ConfigError
from trimtab.kinds.max_lr.phase import phase_one
from trimtab.kinds.max_lr.rounds import rounds
from trimtab.stats.graded import GRADES, UNGRADED
from trimtab.study.bracket import neighbours
from trimtab.study.edge import GRADE_SHARE, edge_trials, grade_of
from trimtab.study.labels import Edge, collapse_line
from trimtab.study.settings import LearningRates
from trimtab.study.trial import Tick, Trial

EDGES = {"baseline": -2.3, "qk_norm": -0.6, "soft_cap": -2.1}
LINE = collapse_line(UNIGRAM, BEST, CRITERION)
STEP = GRADE_SHARE * CRITERION.margin


def curve(best: float, collapse: float, **settings: float) -> Loss:
    loss = slope(best, collapse, **settings)
    return lambda trial: outcome(loss(trial.tick / 16, trial.seed))


def swept(loss: Loss, **search: object) -> list[float]:
    made, _ = carry_out(study(arms=("baseline",), search={"most_runs": 1, **search}), loss)
    return sorted(t.tick / 16 for batch in made for t in batch if t.round == 0)


# --- every second rate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", [-4.4, -4.0, -3.2, -2.6])
def test_a_sweep_of_every_second_rate_adds_the_rates_beside_its_best(best: float) -> None:
    made = swept(curve(best, 1), stride=2)
    full = swept(curve(best, 1))
    lowest = min(full, key=lambda x: slope(best, 1)(x, 0))
    assert lowest in made
    assert {lowest - 1, lowest + 1} <= set(made)
    assert set(made) < set(full)


def test_the_rates_of_the_first_round_are_every_second_and_the_highest() -> None:
    spec = study(arms=("baseline",), search={"stride": 2}, learning_rates={"low": "2^-6", "high": "2^1"})
    assert [t.tick / 16 for t in next(rounds(spec))] == [-6, -4, -2, 0, 1]
    assert spec.first_runs() == 5 + spec.search.replicates


def test_a_stride_of_one_is_the_whole_sweep() -> None:
    assert swept(curve(-3, 1), stride=1) == swept(curve(-3, 1))


def test_a_sweep_with_a_stride_still_goes_beyond_its_ends() -> None:
    made = swept(curve(-8, 4, nats=0.05), stride=2, extensions=4)
    assert made[:3] == [-9, -8, -7]
    assert made[-1] == 5  # the first rate that collapsed


def test_a_rate_beside_the_best_is_not_added_if_another_is_nearer_than_an_interval() -> None:
    rates = LearningRates(low=2**-4, high=2**0.5)
    assert neighbours(rates, [Tick(-64), Tick(0), Tick(8)], Tick(0)) == [Tick(-16)]
    assert neighbours(rates, [Tick(-64), Tick(0), Tick(8)], Tick(-64)) == [Tick(-48)]


@pytest.mark.parametrize("stride", [2, 3, 100])
def test_no_study_with_a_stride_makes_more_runs_than_it_announces(stride: int) -> None:
    spec = study(search={"stride": stride, "extensions": 4, "most_runs": 5, "sweep_seeds": 2})
    for best in (-9.0, -4.4, 2.0):
        _, results = carry_out(spec, curve(best, best + 3))
        assert len(results) <= spec.most_runs()


@pytest.mark.parametrize("value", [0, -1])
def test_a_stride_below_one_is_refused(value: int) -> None:
    with pytest.raises(ConfigError, match="stride must lie between 1"):
        study(search={"stride": value})


# --- grades -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("final", "expected"),
    [
        (BEST, 0),
        (LINE - 2 * STEP - 1e-6, 0),
        (LINE - 2 * STEP + 1e-6, 1),
        (LINE - 1e-6, 2),
        (LINE + 1e-6, 3),
        (LINE + 2 * STEP + 1e-6, GRADES - 1),
        (UNIGRAM, GRADES - 1),
    ],
)
def test_a_grade_counts_the_lines_below_a_loss(final: float, expected: int) -> None:
    assert grade_of(outcome(final), final > LINE, LEARNED, CRITERION, CRITERION.margin) == expected


def test_a_run_that_broke_has_the_highest_grade() -> None:
    broken = outcome(math.nan, stopped="non_finite")
    assert grade_of(broken, True, LEARNED, CRITERION, CRITERION.margin) == GRADES - 1


def test_a_run_that_exploded_by_its_weights_is_ungraded() -> None:
    """Its loss is sound, so the distance from the line says nothing."""
    assert grade_of(outcome(BEST), True, LEARNED, CRITERION, CRITERION.margin) == UNGRADED


def test_runs_below_the_best_rate_and_lost_runs_are_left_out_of_the_grades() -> None:
    results = {
        Trial(0, "a", Tick(-64), 0): outcome(LINE + 0.1),  # below the best rate: not learned
        Trial(0, "a", Tick(-32), 0): outcome(BEST),
        Trial(0, "a", Tick(0), 0): None,
        Trial(0, "a", Tick(16), 0): outcome(LINE + 0.5 * STEP),
    }
    evidence = edge_trials("a", results, LEARNED, CRITERION, Edge.COLLAPSE, graded=True)
    assert evidence.grade is not None
    assert (evidence.x.tolist(), evidence.failed.tolist(), evidence.grade.tolist()) == ([-2, 1], [False, True], [0, 3])


def test_only_the_edge_of_collapse_has_grades() -> None:
    results = {Trial(0, "a", Tick(-32), 0): outcome(BEST)}
    assert edge_trials("a", results, LEARNED, CRITERION, Edge.COLLAPSE).grade is None
    for edge in (Edge.QUALITY, Edge.STRICT):
        assert edge_trials("a", results, LEARNED, CRITERION, edge, graded=True).grade is None


# --- limits from losses -----------------------------------------------------------------------------------------------


def limits(loss: Loss, **search: object) -> Mapping[str, float]:
    """The width of the interval of the baseline's edge of collapse, its median, and the runs."""
    spec = study(arms=("baseline",), search={"most_runs": 19, "probes_per_round": 2, "enough": 0.3, **search})
    found = conclude(spec, loss)
    estimate = found.arms["baseline"].criteria["collapse"].breaks.lr50
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.estimate is not None
    return {
        "width": math.log2(estimate.high / estimate.low),
        "median": math.log2(estimate.estimate),
        "runs": sum(found.arms["baseline"].counts.values()),
    }


def test_on_a_slope_losses_give_a_narrower_interval_from_the_same_number_of_runs() -> None:
    loss = curve(-4, 1, nats=0.25, noise=0.02)
    labels, losses = limits(loss), limits(loss, evidence="losses")
    assert losses["runs"] <= labels["runs"]
    assert losses["width"] < 0.8 * labels["width"]
    assert losses["median"] == pytest.approx(-4 + (LINE - BEST) / 0.25, abs=losses["width"] / 2)


def test_on_a_cliff_losses_lose_little() -> None:
    loss = edges({"baseline": -2.3}, s=0.2, noise=0.01)
    labels, losses = limits(loss), limits(loss, evidence="losses")
    assert losses["width"] < 1.3 * labels["width"]
    assert losses["median"] == pytest.approx(-2.3, abs=losses["width"] / 2)


@pytest.mark.parametrize("order", [1, 2])
def test_a_frugal_study_is_the_same_whatever_finishes_first(order: int) -> None:
    spec = study(search={"stride": 2, "evidence": "losses", "extensions": 4, "most_runs": 17})
    loss = edges(EDGES, s=0.4, noise=0.01)
    assert carry_out(spec, loss, order)[0] == carry_out(spec, loss)[0]


def test_evidence_changes_no_label_and_no_best() -> None:
    spec = study(search={"evidence": "losses"})
    _, results = carry_out(spec, edges(EDGES))
    assert phase_one(spec, results) == phase_one(study(), results)


def test_an_unknown_evidence_is_refused() -> None:
    with pytest.raises(ConfigError, match="evidence"):
        study(search={"evidence": "guess"})
