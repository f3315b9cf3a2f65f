"""The rounds of a search on made-up losses: sweep and extensions, replicates, probes at two edges."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from limit_studies import (
    BEST,
    BROKEN,
    Loss,
    Results,
    carry_out,
    edges,
    outcome,
    slope,
    study,
)

from trimtab.config import ConfigError
from trimtab.kinds.max_lr.phase import phase_one
from trimtab.kinds.max_lr.rounds import FIRST_PROBE_SEED
from trimtab.run.folder import Outcome
from trimtab.study.labels import Edge
from trimtab.study.trial import Trial, best_of

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
    made, results = carry_out(study(search={"extensions": 4}), edges(EDGES, s=0.4))
    numbers = [batch[0].round for batch in made]
    assert [{trial.round for trial in batch} for batch in made] == [{number} for number in numbers]
    assert numbers == sorted(numbers)
    assert numbers[-1] > 2
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
        assert len({t.tick for t in batch}) == len(batch) or batch[0].round < 2, "a rate twice in a round"
        assert all(isinstance(t.tick, int) and -96 <= t.tick <= 32 for t in batch)
        assert all(t.learning_rate == 2 ** (t.tick / 16) for t in batch)


def test_a_blunt_edge_uses_all_whole_rounds_that_are_allowed() -> None:
    spec = study(search={"most_runs": 25, "enough": 0.05})
    _, results = carry_out(spec, edges(EDGES, s=0.4))
    phase = phase_one(spec, results)
    clear = [arm for arm in EDGES if all(phase.has_edge(arm, edge) for edge in (Edge.QUALITY, Edge.COLLAPSE))]
    assert clear
    assert {sum(t.arm == arm for t in results) for arm in clear} == {9 + 2 + 4 * 3}


def test_an_arm_is_closed_when_its_interval_is_narrow_enough() -> None:
    spent = {
        enough: len(carry_out(study(search={"enough": enough}), edges(EDGES))[1]) for enough in (0.05, 0.7, 1.5, 9.0)
    }
    assert spent[0.05] > spent[0.7] >= spent[1.5] > spent[9.0]
    assert spent[9.0] == 3 * (9 + 2)


def test_an_allowance_used_up_by_the_sweep_leaves_no_probes() -> None:
    made, _ = carry_out(study(search={"most_runs": 5}), edges(EDGES))
    assert len(made) == 2


@pytest.mark.parametrize("most_runs", [17, 26])
def test_more_runs_leave_the_whole_rounds_made_before_as_they_were(most_runs: int) -> None:
    loss = edges(EDGES, s=0.4)
    short, _ = carry_out(study(search={"most_runs": most_runs, "enough": 0.05}), loss)
    long, _ = carry_out(study(search={"most_runs": 35, "enough": 0.05}), loss)
    last = len(short) - 1
    assert long[:last] == short[:last]
    assert set(short[last]) <= set(long[last])  # the cap may leave room for one of the two edges only


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
    assert set(phase_one(study(), results).unclear.values()) == {("qk_norm",)}
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
    assert len(made) == 4
    assert [t.tick for t in made[3]] == [t.tick for t in made[2]][: len(made[3])]  # nothing learned, nothing moved


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


def test_more_probes_in_a_round_than_an_arm_has_rates_are_refused() -> None:
    arms = {"baseline": {}, "qk_norm": {"learning_rates": {"low": 1.0, "high": "2^0.125"}}}
    with pytest.raises(ConfigError, match=r"probes_per_round 2 at two edges is more than the 3 rates"):
        study(arms=arms, search={"probes_per_round": 2})


# --- a sweep that extends itself --------------------------------------------------------------------------------------


def curve(best: float, collapse: float, **settings: float) -> Loss:
    final = slope(best, collapse, **settings)
    return lambda trial: outcome(final(trial.tick / 16, trial.seed))


def swept(made: Sequence[Sequence[Trial]], arm: str) -> list[float]:
    return sorted({t.tick / 16 for batch in made for t in batch if t.round == 0 and t.arm == arm})


def extended(low: float, high: float, loss: Loss, extensions: int = 4) -> list[float]:
    rates = {"low": 2.0**low, "high": 2.0**high, "octaves_apart": 1}
    spec = study(arms=("baseline",), learning_rates=rates, search={"extensions": extensions, "most_runs": 1})
    return swept(carry_out(spec, loss)[0], "baseline")


def test_a_sweep_that_starts_too_high_goes_down_until_its_best_is_bracketed() -> None:
    assert extended(-2, 2, curve(-4.0, 1.5)) == [-5, -4, -3, -2, -1, 0, 1, 2]


def test_a_sweep_that_ends_too_low_goes_up_until_a_run_collapses() -> None:
    assert extended(-8, -5, curve(-4.0, -2.5)) == [-8, -7, -6, -5, -4, -3, -2]


def test_a_sweep_that_brackets_its_best_and_sees_a_collapse_is_left_as_it_is() -> None:
    assert extended(-6, 2, curve(-4.0, 1.5)) == list(range(-6, 3))


def test_a_sweep_is_extended_by_no_more_than_it_may() -> None:
    flat = curve(-20.0, 30.0, nats=0.01)
    assert extended(-2, 2, flat) == list(range(-6, 7))
    assert extended(-2, 2, flat, extensions=1) == list(range(-3, 4))
    assert extended(-2, 2, flat, extensions=0) == list(range(-2, 3))


def test_a_sweep_in_which_everything_broke_goes_down() -> None:
    assert extended(0, 2, lambda trial: BROKEN if trial.tick > -32 else outcome(BEST)) == [-4, -3, -2, -1, 0, 1, 2]


def test_each_arm_is_extended_by_itself() -> None:
    wide, narrow = slope(-8.0, 1.5), slope(-4.0, 1.5)
    spec = study(arms=("baseline", "qk_norm"), search={"extensions": 4})
    made, _ = carry_out(
        spec, lambda trial: outcome((wide if trial.arm == "qk_norm" else narrow)(trial.tick / 16, trial.seed))
    )
    assert swept(made, "baseline") == list(range(-6, 3))
    assert swept(made, "qk_norm") == list(range(-9, 3))


@pytest.mark.parametrize("order", [1, 2])
def test_an_extended_study_is_the_same_whatever_finishes_first(order: int) -> None:
    spec = study(search={"extensions": 4})
    loss = edges({"baseline": -5.5, "qk_norm": 3.4, "soft_cap": 0.2}, s=0.3, noise=0.01)
    assert carry_out(spec, loss, order)[0] == carry_out(spec, loss)[0]


def test_no_study_makes_more_runs_than_it_announces() -> None:
    for most_runs in (5, 30):
        spec = study(search={"extensions": 4, "most_runs": most_runs, "sweep_seeds": 2, "confirm": 3})
        for loss in (curve(-20.0, 30.0, nats=0.01), edges(EDGES, s=0.4)):
            assert len(carry_out(spec, loss)[1]) <= spec.most_runs()


# --- two edges --------------------------------------------------------------------------------------------------------

APART = curve(-4.0, 0.4, nats=0.1)  # loses quality two octaves above its best, at 2^-2, and collapses at 2^0.4


def probes(**search: float) -> list[list[Trial]]:
    settings = {"probes_per_round": 2, "enough": 0.01} | search
    made, _ = carry_out(study(arms=("baseline",), search=settings), APART)
    return [list(batch) for batch in made if batch[0].round >= 2]


def near(trial: Trial) -> Edge:
    return Edge.QUALITY if trial.tick / 16 < -0.6 else Edge.COLLAPSE


def test_a_round_probes_the_edge_of_quality_and_then_that_of_collapse() -> None:
    for batch in probes(most_runs=9 + 2 + 16):
        assert [near(trial) for trial in batch] == [Edge.QUALITY] * 2 + [Edge.COLLAPSE] * 2


@pytest.mark.parametrize(("share", "quality", "collapse"), [(0.0, 16, 0), (0.25, 12, 4), (0.5, 8, 8), (1.0, 0, 16)])
def test_the_share_of_collapse_splits_what_the_sweep_leaves(share: float, quality: int, collapse: int) -> None:
    made = [near(trial) for batch in probes(most_runs=9 + 2 + 16, share_collapse=share) for trial in batch]
    assert (made.count(Edge.QUALITY), made.count(Edge.COLLAPSE)) == (quality, collapse)


def test_an_edge_that_is_narrow_enough_leaves_its_rest_to_the_other() -> None:
    noisy = slope(-4.0, 0.4, nats=0.1, noise=0.1)
    spec = study(arms=("baseline",), search={"probes_per_round": 2, "enough": 0.6, "most_runs": 40, "replicates": 0})
    made, _ = carry_out(spec, lambda trial: outcome(noisy(trial.tick / 16, trial.seed)))
    edge_of = [near(trial) for batch in made for trial in batch if trial.round >= 2]
    assert edge_of.count(Edge.COLLAPSE) < edge_of.count(Edge.QUALITY)
    assert edge_of.count(Edge.QUALITY) > (40 - 9) / 2, "the rest of the closed edge was not used"


def test_an_arm_that_never_learned_has_its_probes_at_the_edge_of_quality() -> None:
    poor = slope(-4.0, 0.4, nats=0.1)

    def of(trial: Trial) -> Outcome | None:
        return outcome(poor(trial.tick / 16, trial.seed) + (0.75 if trial.arm == "qk_norm" else 0.0))

    spec = study(arms=("baseline", "qk_norm"), search={"probes_per_round": 2, "enough": 0.01, "most_runs": 19})
    made, results = carry_out(spec, of)
    assert phase_one(spec, results).never_learned == ("qk_norm",)
    those = [t for batch in made for t in batch if t.round >= 2 and t.arm == "qk_norm"]
    assert len(those) == 8
    assert {near(trial) for trial in those} == {Edge.QUALITY}


# --- fresh seeds ------------------------------------------------------------------------------------------------------


def test_a_confirmation_repeats_winner_and_reference_about_their_limits_with_unseen_seeds() -> None:
    where = {"baseline": -3.4, "qk_norm": 0.4, "soft_cap": -1.4}
    made, _ = carry_out(study(search={"confirm": 3}), edges(where, s=0.1))
    last, before = made[-1], made[:-1]
    assert {trial.round for trial in last} != {before[-1][0].round + 1}
    assert {trial.arm for trial in last} == {"baseline", "qk_norm"}
    assert {t.seed for t in last}.isdisjoint({t.seed for batch in before for t in batch})
    for arm in ("baseline", "qk_norm"):
        rates = sorted({t.tick / 16 for t in last if t.arm == arm})
        assert any(abs(rate - (where[arm] - 1)) < 0.5 for rate in rates)
        assert any(abs(rate - (where[arm] + 1)) < 0.5 for rate in rates)
        assert all(sum((t.arm, t.tick / 16) == (arm, rate) for t in last) == 3 for rate in rates)


def test_without_a_winner_nothing_is_confirmed() -> None:
    made, _ = carry_out(study(search={"confirm": 3}), edges(dict.fromkeys(EDGES, -2.0), s=0.1))
    plain, _ = carry_out(study(), edges(dict.fromkeys(EDGES, -2.0), s=0.1))
    assert made == plain
