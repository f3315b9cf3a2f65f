"""The label rule case by case, the search on a synthetic loss curve, and what is concluded from it."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import ConfigError
from trimtab.kinds.max_lr import KIND
from trimtab.kinds.max_lr.analysis import analyse
from trimtab.kinds.max_lr.findings import LimitFindings
from trimtab.kinds.max_lr.rounds import FIRST_PROBE_SEED, phase_one, rounds
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.kinds.max_lr.warnings import departure
from trimtab.run.folder import Outcome
from trimtab.study.edge import one_edge, trials_of
from trimtab.study.kind import Evidence, kind_of, read_any_study
from trimtab.study.labels import FAILURES, Label, Yardstick, failed, label, reference_never_learned
from trimtab.study.settings import Criterion
from trimtab.study.trial import Best, Tick, Trial, best_of

LOG_VOCAB, UNIGRAM, BEST = math.log(256), 3.2, 2.0
STEPS = 400
LEARNED = Yardstick(best_loss=BEST, best_tick=-32, reference_loss=BEST)
CRITERION = Criterion()

Loss = Callable[[Trial], "Outcome | None"]
Results = dict[Trial, "Outcome | None"]


def outcome(final: float = BEST, **facts: Any) -> Outcome:
    steps = facts.pop("steps", STEPS)
    curve = facts.pop("held_out", ((0, LOG_VOCAB), (steps // 2, final), (steps, final)))
    given: dict[str, Any] = {
        "run_id": "run",
        "stopped": None,
        "steps": steps,
        "initial_loss": LOG_VOCAB,
        "final_loss": final,
        "norm_ratio": 1.5,
        "spike": 0.0,
        "log_vocab": LOG_VOCAB,
        "unigram_entropy": UNIGRAM,
        "bytes_per_token": 2.0,
        "held_out": curve,
        "seconds": 1.0,
    }
    return Outcome(**(given | facts))


BROKEN = outcome(math.nan, stopped="non_finite", held_out=((0, LOG_VOCAB), (STEPS // 2, math.nan)))


def study(*, arms: Sequence[str] | Mapping[str, Any] = ("baseline", "qk_norm", "soft_cap"), **tables: Any) -> MaxLrSpec:
    """From 2^-6 to 2^2."""
    raw = {
        "learning_rates": {"low": "2^-6", "high": "2^2", "octaves_apart": 1},
        "arms": arms if isinstance(arms, Mapping) else {arm: {} for arm in arms},
        "training": {"steps": STEPS},
    }
    spec = read_any_study(raw | tables, "test")
    assert isinstance(spec, MaxLrSpec)
    return spec


def edges(where: Mapping[str, float], s: float = 0.0, noise: float = 0.0) -> Loss:
    """Loss falls to BEST one octave below each arm's edge, then the run degrades by 1 nat; the seed decides luck."""

    def of(trial: Trial) -> Outcome:
        x, edge = trial.tick / 16, where[trial.arm]
        luck = random.Random(f"{trial.arm} {trial.tick} {trial.seed}")
        at = edge + (s * math.log(1 / luck.uniform(0.001, 0.999) - 1) if s else 0)
        if x > at:
            return outcome(BEST + 1, spike=1.0)
        return outcome(BEST + 0.02 * abs(x - (edge - 1)) + noise * luck.gauss(0, 1))

    return of


def carry_out(spec: MaxLrSpec, loss: Loss, order: int | None = None) -> tuple[list[list[Trial]], Results]:
    """Drive the search to its end; ``order`` shuffles the results as late workers would."""
    search = rounds(spec)
    results: Results = {}
    made: list[list[Trial]] = []
    batch = list(next(search))
    while True:
        made.append(batch)
        finished = list(batch)
        if order is not None:
            random.Random(order).shuffle(finished)
        results |= {trial: loss(trial) for trial in finished}
        if order is not None:
            shuffled = list(results.items())
            random.Random(order).shuffle(shuffled)
            results = dict(shuffled)
        try:
            batch = list(search.send(results))
        except StopIteration:
            return made, results


def no_cost(arm: str) -> Any:
    raise AssertionError("limits at one size ask for no cost")


def evidence_on(results: Mapping[Trial, Outcome | None], **facts: Any) -> Evidence:
    names = {trial: f"{trial.arm} {trial.tick} {trial.seed} {trial.round}" for trial in results}
    errors = {names[trial]: "no luck" for trial, found in results.items() if found is None}
    given: dict[str, Any] = {"errors": errors, "blocks": lambda name: {}, "cost": no_cost}
    return Evidence(results, names, Path("nowhere"), **(given | facts))


def conclude(spec: MaxLrSpec, loss: Loss) -> LimitFindings:
    _, results = carry_out(spec, loss)
    return analyse(spec, evidence_on(results))


# --- learning rates ---------------------------------------------------------------------------------------------------


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


def test_stuck_is_measured_against_the_reference_for_both_questions() -> None:
    own = Yardstick(best_loss=3.1, best_tick=-32, reference_loss=BEST)
    assert label(outcome(3.1), 0, own, CRITERION, 0.2) is Label.STUCK


@pytest.mark.parametrize("one", Label)
def test_only_failures_and_successes_are_evidence(one: Label) -> None:
    nothing = one in (Label.NO_OUTCOME, Label.UNDERTRAINED)
    assert failed(one) is (None if nothing else one in FAILURES)
    assert failed(one, strict=True) is (None if nothing else one in (Label.NON_FINITE, Label.EXPLODED))


def test_runs_that_are_evidence_of_nothing_are_left_out() -> None:
    trials = trials_of([(Trial(0, "a", Tick(16 * i), 0), one) for i, one in enumerate(Label)])
    evidence = [i for i, one in enumerate(Label) if failed(one) is not None]
    assert trials.x.tolist() == evidence
    assert trials.failed.tolist() == [bool(failed(list(Label)[i])) for i in evidence]


@pytest.mark.parametrize(("loss", "expected"), [(3.1, False), (3.2, True), (3.3, True), (math.nan, True)])
def test_a_reference_no_better_than_unigram_frequencies_never_learned(loss: float, expected: bool) -> None:
    assert reference_never_learned(loss, UNIGRAM) is expected


def test_a_run_that_learned_next_to_nothing_is_stuck_at_any_rate() -> None:
    assert label(outcome(STUCK_ABOVE + 0.01), -48, LEARNED, CRITERION, 0.2) is Label.STUCK


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


# --- the search -------------------------------------------------------------------------------------------------------

EDGES = {"baseline": -2.3, "qk_norm": -0.6, "soft_cap": -2.1}


def test_the_first_round_is_the_sweep_and_the_second_the_replicates_at_each_best() -> None:
    spec = study(search={"sweep_seeds": 2, "replicates": 2})
    made, results = carry_out(spec, edges(EDGES))
    assert {(t.arm, t.tick, t.seed) for t in made[0]} == {
        (arm, tick, seed) for arm in EDGES for tick in range(-96, 33, 16) for seed in (0, 1)
    }
    bests = {arm: best_of(arm, {t: o for t, o in results.items() if t.round == 0}).tick for arm in EDGES}
    assert {(t.arm, t.tick, t.seed) for t in made[1]} == {(arm, bests[arm], seed) for arm in EDGES for seed in (2, 3)}


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_study_is_the_same_whatever_finishes_first(order: int) -> None:
    spec = study()
    loss = edges(EDGES, s=0.4, noise=0.01)
    assert carry_out(spec, loss, order)[0] == carry_out(spec, loss)[0]


def test_rounds_are_numbered_in_order_and_no_trial_is_asked_for_twice() -> None:
    made, results = carry_out(study(), edges(EDGES, s=0.4))
    assert [{trial.round for trial in batch} for batch in made] == [{i} for i in range(len(made))]
    assert len(results) == sum(len(batch) for batch in made)


def test_the_kth_probe_of_every_arm_has_the_same_seed() -> None:
    made, _ = carry_out(study(), edges(EDGES, s=0.4))
    for arm in EDGES:
        seeds = [t.seed for batch in made[2:] for t in batch if t.arm == arm]
        assert seeds == [FIRST_PROBE_SEED + k for k in range(len(seeds))]


def test_probes_use_fresh_seeds() -> None:
    made, _ = carry_out(study(search={"sweep_seeds": 3}), edges(EDGES, s=0.4))
    early = {t.seed for batch in made[:2] for t in batch}
    assert early.isdisjoint({t.seed for batch in made[2:] for t in batch})


@pytest.mark.parametrize("where", [-20.0, -5.9, 0.0, 1.9, 20.0])
def test_probes_are_distinct_sixteenths_inside_the_range(where: float) -> None:
    made, _ = carry_out(study(arms=("baseline",), search={"enough": 0.01}), edges({"baseline": where}, s=0.3))
    for batch in made:
        assert len({t.tick for t in batch}) == len({(t.tick, t.seed) for t in batch}) or batch[0].round < 2
        assert all(isinstance(t.tick, int) and -96 <= t.tick <= 32 for t in batch)
        assert all(t.learning_rate == 2 ** (t.tick / 16) for t in batch)


def test_a_blunt_edge_uses_all_whole_rounds_that_are_allowed() -> None:
    spec = study(search={"most_runs": 25, "enough": 0.05})
    _, results = carry_out(spec, edges(EDGES, s=0.4))
    clear = [arm for arm in EDGES if arm not in phase_one(spec, results).unclear]
    assert clear
    assert {sum(t.arm == arm for t in results) for arm in clear} == {9 + 2 + 4 * 3}


def test_an_arm_is_closed_when_its_interval_is_narrow_enough() -> None:
    spent = {
        enough: len(carry_out(study(search={"enough": enough}), edges(EDGES))[1]) for enough in (0.05, 0.7, 1.5, 9.0)
    }
    assert spent[0.05] > spent[0.7] > spent[1.5] > spent[9.0]
    assert spent[9.0] == 3 * (9 + 2)


def test_an_allowance_used_up_by_the_sweep_leaves_no_probes() -> None:
    made, _ = carry_out(study(search={"most_runs": 5}), edges(EDGES))
    assert len(made) == 2


@pytest.mark.parametrize("most_runs", [17, 26])
def test_more_runs_leave_the_whole_rounds_made_before_as_they_were(most_runs: int) -> None:
    loss = edges(EDGES, s=0.4)
    short, _ = carry_out(study(search={"most_runs": most_runs, "enough": 0.05}), loss)
    long, _ = carry_out(study(search={"most_runs": 35, "enough": 0.05}), loss)
    assert long[: len(short)] == short


def test_more_runs_reuse_those_of_a_last_round_that_was_cut_short() -> None:
    loss = edges(EDGES, s=0.4)
    _, short = carry_out(study(search={"most_runs": 18, "enough": 0.05}), loss)
    _, long = carry_out(study(search={"most_runs": 35, "enough": 0.05}), loss)

    def keys(results: Results) -> set[tuple[str, int, int]]:
        return {(t.arm, t.tick, t.seed) for t in results}

    assert keys(short) <= keys(long)


def test_a_reference_that_never_learned_ends_the_study_after_phase_one() -> None:
    loss = edges(EDGES)

    def never(trial: Trial) -> Outcome | None:
        return outcome(3.3) if trial.arm == "baseline" else loss(trial)

    made, results = carry_out(study(), never)
    assert len(made) == 2
    assert not phase_one(study(), results).learned


def test_an_arm_without_a_clear_boundary_is_not_probed() -> None:
    loss = edges(EDGES)

    def mixed(trial: Trial) -> Outcome | None:
        return BROKEN if trial.arm == "qk_norm" and trial.tick == -64 else loss(trial)

    made, results = carry_out(study(), mixed)
    assert phase_one(study(), results).unclear == ("qk_norm",)
    assert {t.arm for batch in made[2:] for t in batch} == {"baseline", "soft_cap"}


def test_a_grid_repeats_the_sweep_with_as_many_seeds_as_are_allowed() -> None:
    spec = study(search={"design": "grid", "most_runs": 40, "replicates": 1})
    made, _ = carry_out(spec, edges(EDGES))
    assert len(made) == 3
    assert sorted((t.arm, t.seed, t.tick) for t in made[2]) == sorted(
        (arm, FIRST_PROBE_SEED + seed, tick) for arm in EDGES for seed in range(3) for tick in range(-96, 33, 16)
    )


def test_a_grid_asks_for_no_empty_round() -> None:
    made, _ = carry_out(study(search={"design": "grid", "most_runs": 12}), edges(EDGES))
    assert all(made)


def test_runs_without_outcome_are_spent_but_are_no_evidence() -> None:
    loss = edges(EDGES, s=0.3)

    def lossy(trial: Trial) -> Outcome | None:
        return None if trial.round >= 2 else loss(trial)

    spec = study(arms=("baseline",), search={"most_runs": 20, "enough": 0.05})
    made, results = carry_out(spec, lossy)
    assert len(results) == 20
    assert len({tuple(t.tick for t in batch) for batch in made[2:4]}) == 1  # nothing learned, nothing moved


def test_a_study_in_which_every_run_is_lost_ends_after_phase_one() -> None:
    made, results = carry_out(study(), lambda trial: None)
    assert len(made) == 2
    assert not phase_one(study(), results).learned


# --- arms with a range of their own -----------------------------------------------------------------------------------

OWN_RANGE = {"baseline": {}, "qk_norm": {"learning_rates": {"low": "2^-2", "high": "2^7", "octaves_apart": 1.5}}}
HIGH_EDGES = {"baseline": -2.3, "qk_norm": 4.2}


def test_an_arm_with_a_range_of_its_own_is_swept_and_probed_there() -> None:
    spec = study(arms=OWN_RANGE, search={"enough": 0.3})
    made, results = carry_out(spec, edges(HIGH_EDGES, s=0.3))
    swept = {arm: [t.tick for t in made[0] if t.arm == arm] for arm in OWN_RANGE}
    assert swept == {"baseline": list(range(-96, 33, 16)), "qk_norm": list(range(-32, 113, 24))}
    assert len(made[0]) + len(made[1]) == spec.first_runs()
    assert len(results) <= spec.most_runs()
    assert list(spec.ticks()) == sorted({*swept["baseline"], *swept["qk_norm"]})
    for low, high, arm in ((-96, 32, "baseline"), (-32, 112, "qk_norm")):
        probes = [t.tick for batch in made[2:] for t in batch if t.arm == arm]
        assert probes, arm
        assert all(low <= tick <= high for tick in probes)
    assert any(t.tick > 32 for batch in made[2:] for t in batch), "no probe beyond the shared range"


def test_the_limit_of_an_arm_is_looked_for_in_its_own_range() -> None:
    found = conclude(study(arms=OWN_RANGE), edges(HIGH_EDGES, s=0.15))
    for arm, edge in HIGH_EDGES.items():
        limit = found.arms[arm].criteria["d"].breaks.lr50
        assert limit.bound is None, arm
        assert limit.low is not None
        assert limit.high is not None
        assert limit.low < 2**edge < limit.high
    ratio = found.arms["qk_norm"].criteria["d"].ratio.lr50
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < 2 ** (4.2 + 2.3) < ratio.high


@pytest.mark.parametrize(
    ("edge", "bound", "estimate"), [(20.0, "above", 2.0**7), (-2.9, "below", 2.0**-2)], ids=["none fail", "all fail"]
)
def test_a_bound_is_the_end_of_the_arms_own_range(edge: float, bound: str, estimate: float) -> None:
    def of(trial: Trial) -> Outcome | None:
        if trial.arm == "baseline":
            return edges(HIGH_EDGES)(trial)
        return BROKEN if trial.tick / 16 > edge else outcome(BEST)

    limit = conclude(study(arms=OWN_RANGE), of).arms["qk_norm"].criteria["d"].breaks.lr50
    assert (limit.bound, limit.estimate) == (bound, estimate)


def test_a_shared_range_that_no_arm_uses_changes_nothing() -> None:
    rates = {"learning_rates": {"low": "2^-6", "high": "2^2", "octaves_apart": 1}}
    arms = {"baseline": rates, "qk_norm": rates}
    wide = study(arms=arms, learning_rates={"low": "2^-20", "high": "2^20"})
    narrow = study(arms=("baseline", "qk_norm"))
    loss = edges(EDGES, s=0.3)
    assert carry_out(wide, loss) == carry_out(narrow, loss)
    assert conclude(wide, loss).arms == conclude(narrow, loss).arms


def test_more_probes_in_a_round_than_an_arm_has_rates_are_refused() -> None:
    arms = {"baseline": {}, "qk_norm": {"learning_rates": {"low": 1.0, "high": "2^0.125"}}}
    with pytest.raises(ConfigError, match=r"probes_per_round 4 is more than the 3 rates"):
        study(arms=arms, search={"probes_per_round": 4})


# --- arms with another optimizer --------------------------------------------------------------------------------------


def test_an_arm_of_another_optimizer_has_a_limit_and_no_ratio() -> None:
    arms = {"baseline": {}, "muon": {"method": "baseline", "optimizer": {"muon": {}}}, "soft_cap": {}}
    spec = study(arms=arms)
    assert [spec.comparable(arm) for arm in arms] == [True, False, True]
    found = conclude(spec, edges({"baseline": -2.3, "muon": -0.6, "soft_cap": -2.1}, s=0.15))
    own = found.arms["muon"].criteria["d"]
    assert own.breaks.lr50.bound is None
    assert own.breaks.lr50.estimate == pytest.approx(2**-0.6, rel=0.3)
    for ratio in (own.ratio.lr50, own.ratio.lr10):
        assert (ratio.bound, ratio.estimate, ratio.low, ratio.high) == ("other_optimizer", None, None, None)
    assert (own.p_value, own.p_holm, found.arms["muon"].visible_shift) == (None, None, None)
    other = found.arms["soft_cap"].criteria["d"]
    assert other.p_holm == other.p_value is not None, "Holm counted a comparison that is not made"
    assert found.arms["soft_cap"].visible_shift is not None


def test_other_settings_of_the_same_optimizer_can_be_compared() -> None:
    arms = {"baseline": {}, "other": {"method": "baseline", "optimizer": {"weight_decay": 0.3, "rates": {"fc1": 0.5}}}}
    spec = study(arms=arms)
    assert spec.comparable("other")
    found = conclude(spec, edges({"baseline": -2.3, "other": -0.6}, s=0.15)).arms["other"].criteria["d"]
    assert found.ratio.lr50.bound is None


# --- the answers ------------------------------------------------------------------------------------------------------


def test_the_edges_are_found_and_their_ratio_holds_the_truth() -> None:
    found = conclude(study(), edges(EDGES, s=0.15))
    for arm, edge in EDGES.items():
        limit = found.arms[arm].criteria["d"].breaks
        assert limit.lr50.bound is None
        assert limit.lr50.low is not None
        assert limit.lr50.high is not None
        assert limit.lr50.low < 2**edge < limit.lr50.high
        assert limit.lr10.estimate is not None
        assert limit.lr50.estimate is not None
        assert limit.lr10.estimate < limit.lr50.estimate
    ratio = found.arms["qk_norm"].criteria["d"].ratio.lr50
    assert ratio.low is not None
    assert ratio.high is not None
    assert 1 < ratio.low < 2**1.7 < ratio.high


def test_the_reference_is_one_times_itself_and_has_no_p_value() -> None:
    own = conclude(study(), edges(EDGES)).arms["baseline"].criteria["d"]
    assert (own.ratio.lr50.low, own.ratio.lr50.estimate, own.ratio.lr50.high) == (1, 1, 1)
    assert own.p_value is None
    assert own.p_holm is None


def test_holm_counts_comparisons_with_the_reference_and_nothing_else() -> None:
    found = conclude(study(), edges(EDGES, s=0.15)).arms
    for criterion in ("half_d", "d", "double_d"):
        p = {arm: found[arm].criteria[criterion].p_value for arm in ("qk_norm", "soft_cap")}
        holm = {arm: found[arm].criteria[criterion].p_holm for arm in p}
        first, second = sorted(p, key=lambda arm: p[arm] or 0)
        assert holm[first] == pytest.approx(min(1, 2 * (p[first] or 0)))
        assert holm[second] == pytest.approx(max(p[second] or 0, holm[first] or 0))


@pytest.mark.parametrize(
    ("edge", "bound", "estimate"), [(20.0, "above", 2.0**2), (-6.9, "below", 2.0**-6)], ids=["none fail", "all fail"]
)
def test_a_limit_outside_the_range_is_one_sided(edge: float, bound: str, estimate: float) -> None:
    loss = edges(EDGES)

    def of(trial: Trial) -> Outcome | None:
        if trial.arm != "qk_norm":
            return loss(trial)
        return BROKEN if trial.tick / 16 > edge else outcome(BEST)

    found = conclude(study(), of).arms["qk_norm"].criteria["d"]
    for limit in (found.breaks.lr50, found.breaks.lr10):
        assert limit.bound == bound
        assert limit.estimate == estimate
        assert (limit.high if bound == "above" else limit.low) is None
    ratio = found.ratio.lr50
    assert ratio.bound == bound
    assert (ratio.high if bound == "above" else ratio.low) is None
    assert ratio.estimate is not None
    assert (ratio.estimate > 1) is (bound == "above")


def test_two_limits_beyond_the_range_have_no_ratio() -> None:
    found = conclude(study(), lambda trial: outcome(BEST)).arms["qk_norm"].criteria["d"]
    assert found.ratio.lr50.bound == "undetermined"
    assert found.ratio.lr50.estimate is None
    assert found.p_value is not None
    assert found.p_value > 0.9


@pytest.mark.parametrize(
    ("reference", "open_end"),
    [(-3.0, "high"), (1.8, "low")],
    ids=["the arm's interval leaves the range", "the reference's interval leaves the range"],
)
def test_a_ratio_is_open_where_an_interval_leaves_the_range(reference: float, open_end: str) -> None:
    where = {"baseline": reference, "qk_norm": 1.8 if reference < 0 else -3.0}
    spec = study(arms=("baseline", "qk_norm"), search={"most_runs": 11})
    found = conclude(spec, edges(where)).arms
    arm = found["qk_norm" if reference < 0 else "baseline"].criteria["d"].breaks.lr50
    assert arm.bound is None
    assert arm.high is None
    assert getattr(found["qk_norm"].criteria["d"].ratio.lr50, open_end) is None


def test_a_study_whose_reference_never_learned_claims_nothing() -> None:
    found = conclude(study(), lambda trial: outcome(3.3))
    assert not found.learned
    assert [warning.split(":")[0] for warning in found.warnings] == ["reference never learned"]
    for arm in found.arms.values():
        assert arm.criteria["d"].breaks.lr50.bound == "no_data"
        assert arm.criteria["d"].p_value is None


def test_an_arm_without_a_clear_boundary_gets_no_limit_and_no_comparison() -> None:
    loss = edges(EDGES)

    def mixed(trial: Trial) -> Outcome | None:
        return BROKEN if trial.arm == "qk_norm" and trial.tick == -64 else loss(trial)

    found = conclude(study(), mixed)
    own = found.arms["qk_norm"].criteria["d"]
    assert own.breaks.lr50.bound == "no_clear_boundary"
    assert own.breaks.lr50.estimate is None
    assert own.p_value is None
    other = found.arms["soft_cap"].criteria["d"]
    assert other.p_holm == other.p_value  # the only comparison left
    assert any("no clear boundary" in warning and "qk_norm" in warning for warning in found.warnings)


def test_the_strict_criterion_counts_what_exploded_or_broke_only() -> None:
    found = conclude(study(), edges(EDGES)).arms["baseline"].criteria
    assert found["d"].breaks.lr50.bound is None
    assert found["strict"].breaks.lr50.bound == "above"


def warned(found: LimitFindings, text: str) -> bool:
    return any(text in warning for warning in found.warnings)


def test_a_sound_study_warns_of_nothing() -> None:
    found = conclude(study(), edges({"baseline": -2.3, "qk_norm": -0.6, "soft_cap": -4.2}, noise=0.001))
    assert [warning for warning in found.warnings if "model-free" not in warning] == []


def test_a_margin_under_four_spreads_is_warned_of() -> None:
    def noisy(spread: float) -> Loss:
        def of(trial: Trial) -> Outcome | None:
            if trial.tick / 16 > -1:
                return outcome(BEST + 1)
            return outcome(BEST + (spread * (-1) ** trial.seed if trial.round == 1 else 0) + 0.001 * abs(trial.tick))

        return of

    spec = study(arms=("baseline", "qk_norm"), search={"most_runs": 11})
    assert warned(conclude(spec, noisy(0.15)), "less than 4 times the standard deviation")
    assert not warned(conclude(spec, noisy(0.01)), "less than 4 times the standard deviation")


def test_an_order_that_depends_on_the_margin_is_warned_of() -> None:
    def slopes(trial: Trial) -> Outcome | None:
        # The baseline breaks at 2^-1.3; qk_norm degrades by 0.3 at 2^-2.3 and breaks at 2^0.7.
        x = trial.tick / 16
        if trial.arm == "baseline":
            return outcome(BEST + (1 if x > -1.3 else 0.01 * abs(x + 4)))
        return outcome(BEST + (1 if x > 0.7 else 0.3 if x > -2.3 else 0.01 * abs(x + 4)))

    spec = study(arms=("baseline", "qk_norm"))
    assert warned(conclude(spec, slopes), "the order of the arms depends on the margin")
    assert not warned(conclude(spec, edges(EDGES)), "the order of the arms")


@pytest.mark.parametrize(("lost", "expected"), [(1, False), (2, True)])
def test_more_than_a_twentieth_of_runs_without_outcome_is_warned_of(lost: int, expected: bool) -> None:
    spec = study(arms=("baseline", "qk_norm"), search={"most_runs": 11})  # 22 runs

    def lossy(trial: Trial) -> Outcome | None:
        gone = [("baseline", -96), ("qk_norm", -96)][:lost]
        return None if (trial.arm, trial.tick) in gone else edges(EDGES)(trial)

    found = conclude(spec, lossy)
    assert sum(arm.counts["no_outcome"] for arm in found.arms.values()) == lost
    assert warned(found, "no outcome") is expected
    assert [run.run_id for run in found.runs if run.outcome is None] == list(found.evidence.errors)
    assert len(found.evidence.errors) == lost


@pytest.mark.parametrize(("step", "expected"), [(380, True), (200, False)])
def test_failures_that_begin_late_are_warned_of(step: int, expected: bool) -> None:
    def late(trial: Trial) -> Outcome | None:
        fine = edges(EDGES)(trial)
        if fine is None or fine.final_loss < BEST + 0.9:
            return fine
        curve = ((0, LOG_VOCAB), (step - 10, BEST), (step, BEST + 1), (STEPS, BEST + 1))
        return dataclasses.replace(fine, held_out=curve)

    assert warned(conclude(study(), late), "began in the last fifth") is expected


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([4, 3, 2], None),
        ([4, 3, 3.1], None),
        ([4, 2, 3, 2, 2.1], None),
        ([4, 2, 3, 3], 2),
        ([4, 2, 3, 2, 3], 4),
        ([4, 2, math.nan], 2),
        ([4, 2, 3, math.nan, math.inf], 2),
        ([math.nan], 0),
        ([], None),
    ],
)
def test_a_departure_is_the_start_of_the_last_excursion(curve: list[float], expected: int | None) -> None:
    assert departure(outcome(held_out=tuple(enumerate(curve))), 0.2) == expected


def test_a_run_that_breaks_between_two_evaluations_departs_where_it_stopped() -> None:
    broken = outcome(math.nan, stopped="non_finite", steps=390, held_out=((0, LOG_VOCAB), (380, BEST)))
    assert departure(broken, 0.2) == 390


def test_every_run_is_listed_with_its_label() -> None:
    found = conclude(study(), edges(EDGES, s=0.2))
    for name, arm in found.arms.items():
        own = [run.label.value for run in found.runs if run.trial.arm == name]
        assert arm.counts == {one.value: own.count(one.value) for one in Label}


# --- a study that is not finished -------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [0, 1, 2, 9, 20, 30, -1])
def test_a_study_that_is_not_finished_is_analysed_as_far_as_it_goes(made: int) -> None:
    spec = study()
    _, results = carry_out(spec, edges(EDGES, s=0.15))
    early = dict(list(results.items())[:made])
    evidence = evidence_on(early, complete=False, pending=len(results) - len(early))
    found = analyse(spec, evidence)
    assert found.evidence is evidence
    assert len(found.runs) == len(early)
    assert list(found.arms) == list(spec.arms)
    for name, arm in found.arms.items():
        assert sum(arm.counts.values()) == sum(run.trial.arm == name for run in found.runs)
    if made == 0:
        assert not found.learned
        assert all(arm.criteria["d"].breaks.lr50.bound == "no_data" for arm in found.arms.values())


def test_runs_are_listed_arm_by_arm_whatever_their_order() -> None:
    spec = study()
    loss = edges(EDGES, s=0.2)
    _, results = carry_out(spec, loss)
    shuffled = list(results.items())
    random.Random(1).shuffle(shuffled)
    one, other = (analyse(spec, evidence_on(some)) for some in (results, dict(shuffled)))
    assert one.runs == other.runs
    assert one.arms == other.arms
    assert [run.trial.arm for run in one.runs] == sorted((run.trial.arm for run in one.runs), key=list(spec.arms).index)


def test_the_rounds_have_names() -> None:
    assert [KIND.round_name(number) for number in range(4)] == ["sweep", "replicates", "probes 1", "probes 2"]
    assert kind_of(study()) is KIND
