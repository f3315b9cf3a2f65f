"""The label rule case by case, the best of an arm, and what phase one determines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pytest
from limit_studies import (
    BEST,
    BROKEN,
    CRITERION,
    LEARNED,
    LOG_VOCAB,
    UNIGRAM,
    Results,
    outcome,
    study,
)

from trimtab.kinds.max_lr.phase import phase_one
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.run.folder import Outcome
from trimtab.study.edge import one_edge, trials_of
from trimtab.study.labels import (
    COLLAPSES,
    FAILURES,
    STRICT_FAILURES,
    Edge,
    Label,
    Yardstick,
    collapse_line,
    failed,
    label,
    reference_never_learned,
)
from trimtab.study.settings import Criterion
from trimtab.study.trial import Best, Tick, Trial, best_of


def test_a_tick_is_a_whole_number_of_sixteenths_of_an_octave() -> None:
    for sixteenths in (-96, -1, 0, 1, 17):
        tick = Tick(sixteenths)
        assert tick == sixteenths
        assert (tick.octave, tick.learning_rate) == (sixteenths / 16, 2 ** (sixteenths / 16))
        assert Tick.nearest(tick.learning_rate) == tick
        assert Tick.nearest(tick.learning_rate * 2**0.03) == tick
        assert isinstance(Tick.nearest(tick.learning_rate), Tick)
    assert sorted([Tick(3), Tick(-3)]) == [-3, 3]
    assert {Tick(3): "a"}[3] == "a"  # type: ignore[index]


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_learning_rate_that_cannot_be_has_no_tick(rate: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        Tick.nearest(rate)


# --- labels -----------------------------------------------------------------------------------------------------------

STUCK_ABOVE = UNIGRAM - 0.2 * (UNIGRAM - BEST)
CASES: Mapping[str, tuple[Outcome | None, int, Label]] = {
    "no outcome": (None, 0, Label.NO_OUTCOME),
    "a non-finite value": (BROKEN, 0, Label.NON_FINITE),
    "non-finite wins over a good loss": (outcome(BEST, stopped="non_finite"), 0, Label.NON_FINITE),
    "loss over ln V + 0.1": (outcome(LOG_VOCAB + 0.101), 0, Label.EXPLODED),
    "loss at ln V + 0.1": (outcome(LOG_VOCAB + 0.1), 0, Label.STUCK),
    "an infinite loss": (outcome(math.inf), 0, Label.EXPLODED),
    "weights grown over 100 times": (outcome(BEST, norm_ratio=100.1), 0, Label.EXPLODED),
    "weights grown 100 times": (outcome(BEST, norm_ratio=100.0), 0, Label.STABLE),
    "loss near unigram entropy": (outcome(STUCK_ABOVE + 1e-6), 0, Label.STUCK),
    "loss near unigram entropy below the best LR": (outcome(STUCK_ABOVE + 1e-6), -33, Label.NOT_LEARNED),
    "loss just past it": (outcome(STUCK_ABOVE - 1e-6), 0, Label.DEGRADED),
    "loss over best + d above the best LR": (outcome(BEST + 0.2001), -31, Label.DEGRADED),
    "loss over best + d below the best LR": (outcome(BEST + 0.2001), -33, Label.UNDERTRAINED),
    "loss at best + d": (outcome(BEST + 0.2), 0, Label.STABLE),
    "a spike": (outcome(BEST, spike=0.101), 0, Label.RECOVERED),
    "a small spike": (outcome(BEST, spike=0.1), 0, Label.STABLE),
    "a spike that cost too much": (outcome(BEST + 0.5, spike=3.0), 0, Label.DEGRADED),
    "better than the best": (outcome(BEST - 1), 0, Label.STABLE),
}


@pytest.mark.parametrize(("found", "tick", "expected"), CASES.values(), ids=CASES.keys())
def test_the_first_label_that_matches_is_given(found: Outcome | None, tick: int, expected: Label) -> None:
    assert label(found, tick, LEARNED, CRITERION, 0.2) is expected


def test_every_label_can_be_reached() -> None:
    assert {expected for _, _, expected in CASES.values()} == set(Label)


@pytest.mark.parametrize(("margin", "expected"), [(0.1, Label.DEGRADED), (0.2, Label.DEGRADED), (0.4, Label.STABLE)])
def test_the_margin_decides_what_is_degraded(margin: float, expected: Label) -> None:
    assert label(outcome(BEST + 0.3), 0, LEARNED, CRITERION, margin) is expected


def test_what_breaks_and_what_is_usable_differ_in_the_best_they_are_measured_against() -> None:
    own = Yardstick(best_loss=2.5, best_tick=-32, reference_loss=BEST)
    reference = dataclasses.replace(own, best_loss=BEST)
    assert label(outcome(2.6), 0, own, CRITERION, 0.2) is Label.STABLE
    assert label(outcome(2.6), 0, reference, CRITERION, 0.2) is Label.DEGRADED


def test_collapse_is_measured_against_the_reference_for_both_questions() -> None:
    own = Yardstick(best_loss=3.1, best_tick=-32, reference_loss=BEST)
    assert label(outcome(3.1), 0, own, CRITERION, 0.2) is Label.STUCK


@pytest.mark.parametrize("one", Label)
def test_a_label_is_a_failure_a_success_or_no_evidence_at_each_edge(one: Label) -> None:
    learned_too_little = (Label.NOT_LEARNED, Label.UNDERTRAINED)
    quality = None if one in (Label.NO_OUTCOME, *learned_too_little) else one in FAILURES
    collapse = None if one in (Label.NO_OUTCOME, Label.NOT_LEARNED) else one in COLLAPSES
    strict = None if one is Label.NO_OUTCOME else one in STRICT_FAILURES
    assert [failed(one, edge) for edge in (Edge.QUALITY, Edge.COLLAPSE, Edge.STRICT)] == [quality, collapse, strict]


def test_a_failure_at_the_edge_of_collapse_is_one_at_the_edge_of_quality() -> None:
    assert all(failed(one) for one in Label if failed(one, Edge.COLLAPSE))


@pytest.mark.parametrize(("entropy", "expected"), [(3.15, 2.936), (9.0, 3.08)], ids=["a fifth of the way", "one nat"])
def test_the_line_of_collapse_is_one_nat_above_the_reference_or_a_fifth_of_its_way(
    entropy: float, expected: float
) -> None:
    assert collapse_line(entropy, 2.08, CRITERION) == pytest.approx(expected)


def test_the_line_of_collapse_is_the_same_for_all_arms() -> None:
    worse = Yardstick(best_loss=2.6, best_tick=-32, reference_loss=BEST)
    line = collapse_line(UNIGRAM, BEST, CRITERION)
    for yardstick in (LEARNED, worse):
        assert label(outcome(line + 1e-6), 0, yardstick, CRITERION, 0.2) is Label.STUCK
        assert label(outcome(line - 1e-6), 0, yardstick, CRITERION, 0.2) is Label.DEGRADED


def test_runs_that_are_evidence_of_nothing_are_left_out() -> None:
    trials = trials_of([(Trial(0, "a", Tick(16 * i), 0), one) for i, one in enumerate(Label)])
    evidence = [i for i, one in enumerate(Label) if failed(one) is not None]
    assert trials.x.tolist() == evidence
    assert trials.failed.tolist() == [bool(failed(list(Label)[i])) for i in evidence]


@pytest.mark.parametrize(("loss", "expected"), [(3.1, False), (3.2, True), (3.3, True), (math.nan, True)])
def test_a_reference_no_better_than_unigram_frequencies_never_learned(loss: float, expected: bool) -> None:
    assert reference_never_learned(loss, UNIGRAM) is expected


def test_a_run_below_the_best_rate_that_learned_next_to_nothing_is_no_failure_of_a_high_rate() -> None:
    assert label(outcome(STUCK_ABOVE + 0.01), -48, LEARNED, CRITERION, 0.2) is Label.NOT_LEARNED


def test_a_degraded_run_at_the_best_rate_is_a_failure() -> None:
    assert label(outcome(BEST + 0.5), -32, LEARNED, CRITERION, 0.2) is Label.DEGRADED


def test_a_run_that_was_stopped_as_exploded_is_exploded_whatever_the_margin() -> None:
    criterion = Criterion(explosion_margin=0.5)
    assert label(outcome(LOG_VOCAB + 0.2, stopped="exploded"), 0, LEARNED, criterion, 0.2) is Label.EXPLODED


# --- phase one --------------------------------------------------------------------------------------------------------


def sweep_of(spec: MaxLrSpec, losses: Mapping[str, Sequence[float | None]]) -> Results:
    """One seed; None is a run without outcome, nan one that broke."""
    ticks = spec.learning_rates.sweep()
    return {
        Trial(0, arm, tick, 0): None if x is None else BROKEN if math.isnan(x) else outcome(x)
        for arm, row in losses.items()
        for tick, x in zip(ticks, row, strict=True)
    }


GOOD = (2.9, 2.5, 2.1, 2.0, 2.05, 2.1, 3.0, 3.1, math.nan)


def test_the_best_is_the_lowest_mean_over_seeds_at_one_rate() -> None:
    results: Results = {
        Trial(0, "a", Tick(0), 0): outcome(2.0),
        Trial(0, "a", Tick(0), 1): outcome(2.6),
        Trial(0, "a", Tick(16), 0): outcome(2.2),
        Trial(0, "a", Tick(16), 1): outcome(2.3),
        Trial(0, "b", Tick(32), 0): outcome(1.0),
    }
    assert best_of("a", results) == Best(pytest.approx(2.25), 16)  # type: ignore[arg-type]


def test_a_rate_with_a_broken_seed_is_not_the_best() -> None:
    results: Results = {
        Trial(0, "a", Tick(0), 0): outcome(1.0),
        Trial(0, "a", Tick(0), 1): BROKEN,
        Trial(0, "a", Tick(16), 0): outcome(2.5),
        Trial(0, "a", Tick(32), 0): None,
    }
    assert best_of("a", results) == Best(2.5, 16)


def test_the_lower_of_two_equal_bests_is_taken() -> None:
    assert best_of("a", {Trial(0, "a", Tick(t), 0): outcome(2.0) for t in (32, 0, 16)}).tick == 0


def test_an_arm_whose_every_run_broke_has_no_best() -> None:
    best = best_of("a", {Trial(0, "a", Tick(tick), 0): BROKEN for tick in (16, -16)})
    assert math.isnan(best.loss)
    assert best.tick == -16


def test_later_rounds_change_nothing_that_phase_one_fixed() -> None:
    spec = study(arms=("baseline", "qk_norm"))
    early = sweep_of(spec, {"baseline": GOOD, "qk_norm": GOOD})
    late: Results = {Trial(2, "baseline", Tick(3), 1000): outcome(0.5), Trial(3, "qk_norm", Tick(-96), 1001): BROKEN}
    assert phase_one(spec, early) == phase_one(spec, early | late)


def test_phase_one_measures_the_spread_between_seeds_near_the_best_only() -> None:
    spec = study(arms=("baseline",))
    results = sweep_of(spec, {"baseline": GOOD}) | {
        Trial(1, "baseline", Tick(-48), 1): outcome(2.02),
        Trial(1, "baseline", Tick(-48), 2): outcome(2.04),
        Trial(1, "baseline", Tick(0), 1): outcome(9.0),
    }
    assert phase_one(spec, results).seed_sd == pytest.approx(0.02)


def test_seed_noise_is_nan_without_replicates() -> None:
    spec = study(arms=("baseline",))
    assert math.isnan(phase_one(spec, sweep_of(spec, {"baseline": GOOD})).seed_sd)


@pytest.mark.parametrize(
    ("row", "clear"),
    [
        (GOOD, True),
        ((2.0,) * 9, True),
        ((2.9, 2.5, 2.1, 2.0, 2.05, 2.1, math.nan, 2.2, math.nan), False),
        ((2.9, 2.5, 2.1, 2.0, 2.05, 2.1, None, 3.1, 3.2), True),
        ((2.9, 2.6, 2.9, 2.0, 2.05, 2.1, 3.0, 3.1, 3.2), True),  # undertrained in any order
        ((math.nan,) * 9, True),
    ],
)
def test_failures_are_one_edge_unless_a_success_follows_one(row: Sequence[float | None], clear: bool) -> None:
    spec = study(arms=("baseline",))
    results = sweep_of(spec, {"baseline": row})
    best = best_of("baseline", results)
    yardstick = Yardstick(best.loss if math.isfinite(best.loss) else math.inf, best.tick, 2.0)
    assert one_edge("baseline", results, yardstick, CRITERION) is clear


def test_an_edge_is_looked_for_seed_by_seed() -> None:
    results: Results = {
        Trial(0, "a", Tick(tick), seed): outcome(BEST if tick < edge else BEST + 1)
        for seed, edge in ((0, 0), (1, 32))
        for tick in range(-32, 64, 16)
    }
    assert one_edge("a", results, Yardstick(BEST, -32, BEST), CRITERION)


def test_the_error_of_the_best_is_that_of_its_runs_or_of_all_arms_whichever_is_larger() -> None:
    spec = study(arms=("baseline", "qk_norm"))
    results = sweep_of(spec, {"baseline": GOOD, "qk_norm": GOOD}) | {
        Trial(1, "baseline", Tick(-48), 1): outcome(2.3),
        Trial(1, "qk_norm", Tick(-48), 1): outcome(2.02),
    }
    phase = phase_one(spec, results)
    calm = phase.seed_sd / math.sqrt(2)
    assert phase.error_of_best("qk_norm") == pytest.approx(calm)
    assert phase.error_of_best("baseline") > 1.2 * calm


def test_an_arm_whose_bracketed_best_is_near_the_unigram_entropy_never_learned() -> None:
    spec = study(arms=("baseline", "qk_norm"))
    poor = (3.1, 3.0, 2.9, 2.7, 2.8, 2.9, 3.1, 3.2, 3.2)
    phase = phase_one(spec, sweep_of(spec, {"baseline": GOOD, "qk_norm": poor}))
    assert phase.never_learned == ("qk_norm",)
    assert not phase.has_edge("qk_norm", Edge.COLLAPSE)
    assert phase.has_edge("qk_norm", Edge.QUALITY)
    falling = (2.7, 2.8, 2.9, 3.0, 3.1, 3.1, 3.1, 3.2, 3.2)  # its best may lie below the sweep
    assert phase_one(spec, sweep_of(spec, {"baseline": GOOD, "qk_norm": falling})).never_learned == ()
