"""What is concluded from a search: limits at two edges, ratios, groups, warnings."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
from limit_studies import (
    BEST,
    BROKEN,
    LOG_VOCAB,
    STEPS,
    UNIGRAM,
    Loss,
    carry_out,
    conclude,
    edges,
    evidence_on,
    outcome,
    slope,
    study,
    warned,
)

from trimtab.kinds.max_lr import KIND
from trimtab.kinds.max_lr.analysis import analyse
from trimtab.kinds.max_lr.edges import departure
from trimtab.kinds.max_lr.page import content
from trimtab.kinds.max_lr.table import NOT_BRACKETED, result_table
from trimtab.run.folder import Outcome
from trimtab.study.kind import kind_of
from trimtab.study.labels import Label
from trimtab.study.trial import Trial

EDGES = {"baseline": -2.3, "qk_norm": -0.6, "soft_cap": -2.1}

# --- arms with a range of their own -----------------------------------------------------------------------------------

OWN_RANGE = {"baseline": {}, "qk_norm": {"learning_rates": {"low": "2^-2", "high": "2^7", "octaves_apart": 1.5}}}
HIGH_EDGES = {"baseline": -2.3, "qk_norm": 4.2}


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
    assert (own.p_value, own.p_holm, found.arms["muon"].edges["quality"].visible_shift) == (None, None, None)
    other = found.arms["soft_cap"].criteria["d"]
    assert other.p_holm == other.p_value is not None, "Holm counted a comparison that is not made"
    assert found.arms["soft_cap"].edges["quality"].visible_shift is not None


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
    for criterion in ("half_d", "d", "double_d", "collapse"):
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


def test_an_arm_without_a_single_edge_gets_no_limit_and_no_comparison() -> None:
    loss = edges(EDGES)

    def mixed(trial: Trial) -> Outcome | None:
        return BROKEN if trial.arm == "qk_norm" and trial.tick == -64 else loss(trial)

    found = conclude(study(), mixed)
    own = found.arms["qk_norm"].criteria["d"]
    assert own.breaks.lr50.bound == "no_single_edge"
    assert own.breaks.lr50.estimate is None
    assert own.p_value is None
    other = found.arms["soft_cap"].criteria["d"]
    assert other.p_holm == other.p_value  # the only comparison left
    assert any("no single edge" in warning and "qk_norm" in warning for warning in found.warnings)


def test_the_strict_criterion_counts_what_exploded_or_broke_only() -> None:
    found = conclude(study(), edges(EDGES)).arms["baseline"].criteria
    assert found["d"].breaks.lr50.bound is None
    assert found["strict"].breaks.lr50.bound == "above"


def test_a_sound_study_warns_of_nothing() -> None:
    found = conclude(study(), edges({"baseline": -2.3, "qk_norm": -0.6, "soft_cap": -4.2}, noise=0.001))
    assert [warning for warning in found.warnings if "model-free" not in warning] == []


@pytest.mark.parametrize(("spread", "expected"), [(0.1, True), (0.01, False)])
def test_a_margin_under_four_spreads_near_the_edge_is_warned_of(spread: float, expected: bool) -> None:
    # Near the best rate all is calm: the spread counts where the margin decides.
    final = slope(-4.0, 1.5, nats=0.1)

    def of(trial: Trial) -> Outcome | None:
        luck = random.Random(f"{trial.tick} {trial.seed}").gauss(0, 1) if trial.tick / 16 > -3 else 0.0
        return outcome(final(trial.tick / 16, trial.seed) + spread * luck)

    found = conclude(study(arms=("baseline",), search={"most_runs": 30, "enough": 0.1}), of)
    assert warned(found, "less than 4 times the spread of the final loss within one octave of the edge") is expected
    measured = found.arms["baseline"].edges["quality"].spread
    assert measured is not None
    assert measured == pytest.approx(spread, rel=0.5)


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

    found = conclude(study(), late)
    assert warned(found, "failures began in the last 20% of the steps") is expected
    assert found.arms["baseline"].edges["quality"].late == (1.0 if expected else 0.0)


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


# --- two edges --------------------------------------------------------------------------------------------------------


def of_curves(**curves: object) -> Loss:
    def of(trial: Trial) -> Outcome | None:
        final = curves[trial.arm]
        assert callable(final)
        return outcome(final(trial.tick / 16, trial.seed))

    return of


TWO = of_curves(baseline=slope(-4.0, -0.6, noise=0.01), qk_norm=slope(-4.0, 1.4, nats=0.08, noise=0.01))


def test_an_arm_loses_quality_at_one_rate_and_collapses_at_another() -> None:
    found = conclude(study(arms=("baseline", "qk_norm"), search={"most_runs": 30}), TWO)
    for arm, quality, collapse in (("baseline", -4 + 0.2 / 0.15, -0.6), ("qk_norm", -4 + 0.2 / 0.08, 1.4)):
        for criterion, truth in (("d", quality), ("collapse", collapse)):
            limit = found.arms[arm].criteria[criterion].breaks.lr50
            assert limit.low is not None, (arm, criterion)
            assert limit.high is not None, (arm, criterion)
            assert limit.low < 2**truth < limit.high, (arm, criterion)
        assert not found.arms[arm].one_edge
    assert found.collapse_line == pytest.approx(UNIGRAM - 0.2 * (UNIGRAM - found.reference_loss))


def test_an_arm_that_degrades_without_collapsing_has_a_bound_at_that_edge() -> None:
    found = conclude(
        study(arms=("baseline", "qk_norm")), of_curves(baseline=slope(-4.0, 0.5), qk_norm=slope(-4.0, 30.0))
    )
    quality, collapse = (found.arms["qk_norm"].criteria[name].breaks.lr50 for name in ("d", "collapse"))
    assert quality.bound is None
    assert (collapse.bound, collapse.estimate) == ("above", 2.0**2)


def test_runs_below_the_best_that_learned_too_little_are_no_evidence_of_a_high_rate() -> None:
    # At 2^-6 and 2^-5 nothing is learned; were that a failure, no edge would be single.
    def of(trial: Trial) -> Outcome | None:
        return outcome(UNIGRAM) if trial.tick / 16 < -4.5 else edges(EDGES)(trial)

    found = conclude(study(), of)
    for name, arm in found.arms.items():
        assert arm.counts["not_learned"] == 2
        assert [arm.criteria[c].breaks.lr50.bound for c in ("d", "collapse")] == [None, None], name


def test_an_arm_that_never_learned_has_no_edge_of_collapse() -> None:
    poor = slope(-4.0, 0.4, nats=0.1)
    found = conclude(
        study(arms=("baseline", "qk_norm")),
        of_curves(baseline=slope(-4.0, 0.4), qk_norm=lambda x, seed: poor(x, seed) + 0.75),
    )
    assert found.arms["qk_norm"].criteria["collapse"].breaks.lr50.bound == "never_learned"
    assert found.arms["qk_norm"].criteria["d"].breaks.lr50.bound is None
    assert warned(found, "no edge of collapse")
    row = next(row for row in result_table(found, None).rows if row[0] == "qk_norm")
    assert "never learned" in row


def test_two_edges_in_the_wrong_order_are_printed_as_one() -> None:
    found = conclude(study(search={"most_runs": 25}), edges(EDGES, s=0.1))  # every failure is a collapse
    for name, arm in found.arms.items():
        quality, collapse = (arm.criteria[c].breaks.lr50.estimate for c in ("d", "collapse"))
        assert quality is not None
        assert collapse is not None
        assert arm.one_edge is (quality >= collapse)
        row = next(row for row in result_table(found, None).rows if row[0] == name)
        assert ("one edge, see collapse" in row) is arm.one_edge
    assert any(arm.one_edge for arm in found.arms.values())


def test_a_late_failure_flags_its_own_edge_only() -> None:
    def of(trial: Trial) -> Outcome | None:
        found = TWO(trial)
        assert found is not None
        if found.final_loss < UNIGRAM:
            return found
        curve = ((0, LOG_VOCAB), (370, BEST), (380, UNIGRAM), (STEPS, UNIGRAM))
        return dataclasses.replace(found, held_out=curve)

    found = conclude(study(arms=("baseline", "qk_norm"), search={"most_runs": 40}), of)
    assert warned(found, "edge of collapse:")
    shares = {edge: found.arms["baseline"].edges[edge].late for edge in ("quality", "collapse")}
    assert shares["collapse"] == 1.0
    assert shares["quality"] < 1.0


# --- a best at the end of the range -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("best", "end"), [(-20.0, "lowest"), (20.0, "highest")])
def test_a_best_at_an_end_of_the_sweep_is_said_wherever_it_matters(best: float, end: str) -> None:
    curves = of_curves(baseline=slope(-4.0, 0.5), qk_norm=slope(best, 30.0, nats=0.02))
    found = conclude(study(arms=("baseline", "qk_norm"), search={"extensions": 2}), curves)
    assert [arm.bracketed for arm in found.arms.values()] == [True, False]
    assert warned(
        found, f"best not bracketed: the best rate of 'qk_norm', {found.arms['qk_norm'].best_lr:.3g}, is the {end}"
    )
    rows = {row[0]: row for row in result_table(found, None).rows}
    assert not any(NOT_BRACKETED in cell for cell in rows["baseline"])
    assert sum(NOT_BRACKETED in cell for cell in rows["qk_norm"]) >= 4
    results = content(found).results
    assert results.arms["qk_norm"].bracketed is False


def test_a_reference_without_a_bracketed_best_taints_every_arm() -> None:
    curves = of_curves(baseline=slope(-20.0, 0.5, nats=0.01), qk_norm=slope(-4.0, 0.5))
    found = conclude(study(arms=("baseline", "qk_norm"), search={"extensions": 1}), curves)
    rows = {row[0]: row for row in result_table(found, None).rows}
    assert any(NOT_BRACKETED in cell for cell in rows["qk_norm"])
    assert content(found).facts.reference_bracketed is False
    assert warned(found, "the line of collapse of all arms")


# --- groups, shape, fresh seeds ---------------------------------------------------------------------------------------


def test_arms_far_apart_are_in_different_groups_and_close_ones_share_a_letter() -> None:
    found = conclude(
        study(arms=("baseline", "qk_norm", "soft_cap"), search={"most_runs": 30}),
        edges({"baseline": -3.3, "qk_norm": 0.6, "soft_cap": -3.2}, s=0.1),
    )
    for edge in ("quality", "collapse"):
        group = {name: set(arm.edges[edge].group) for name, arm in found.arms.items()}
        assert group["baseline"] & group["soft_cap"]
        assert not group["baseline"] & group["qk_norm"]
        pair = next(pair for pair in found.pairs[edge] if {pair.arm, pair.other} == {"baseline", "qk_norm"})
        assert pair.probability < 0.01
        assert pair.p_holm < 0.05


def test_holm_of_the_groups_counts_all_pairs() -> None:
    found = conclude(study(), edges(EDGES, s=0.15))
    smallest = min(found.pairs["quality"], key=lambda pair: pair.p_holm)
    alone = 2 * min(smallest.probability, 1 - smallest.probability)
    assert len(found.pairs["quality"]) == 3
    assert smallest.p_holm == pytest.approx(min(1.0, 3 * alone))


def test_a_cliff_and_a_slope_are_told_apart_in_nats_per_octave() -> None:
    curves = of_curves(baseline=slope(-4.0, 0.3, nats=1.2, noise=0.01), qk_norm=slope(-4.0, 1.8, nats=0.12, noise=0.01))
    found = conclude(study(arms=("baseline", "qk_norm"), search={"most_runs": 30}), curves)
    cliff, gentle = (found.arms[arm].edges["quality"] for arm in ("baseline", "qk_norm"))
    assert (cliff.shape, gentle.shape) == ("cliff", "slope")
    assert gentle.slope == pytest.approx(0.12, abs=0.02)


def test_a_confirmation_says_whether_fresh_runs_agree_and_changes_no_limit() -> None:
    where = {"baseline": -3.4, "qk_norm": 0.4, "soft_cap": -1.4}
    plain = conclude(study(), edges(where, s=0.1))
    found = conclude(study(search={"confirm": 3}), edges(where, s=0.1))
    assert {name: arm.criteria for name, arm in found.arms.items()} == {n: a.criteria for n, a in plain.arms.items()}
    assert {(c.arm, c.holds) for c in found.confirmed} == {("qk_norm", True), ("baseline", True)}

    def lucky(trial: Trial) -> Outcome | None:  # the fresh seeds of qk_norm all fail
        return outcome(UNIGRAM) if trial.seed >= 500_000 and trial.arm == "qk_norm" else edges(where, s=0.1)(trial)

    fresh = conclude(study(search={"confirm": 3}), lucky)
    assert {(c.arm, c.holds) for c in fresh.confirmed} == {("qk_norm", False), ("baseline", True)}
    assert any("not confirmed by 3 unseen seeds" in line for line in content(fresh).verdicts)


def test_the_order_of_a_paper_is_judged_at_the_edge_of_collapse_with_an_interval_over_arms() -> None:
    arms = ("baseline", "soft_temp", "layer_scale", "soft_cap", "qkv_norm")
    rates = (-4.2, -3.2, -2.2, -0.2, 1.4)
    for order, verdict in ((rates, "order agrees"), (rates[::-1], "order does not agree")):
        where = dict(zip(arms, order, strict=True))
        found = conclude(study(arms=arms, search={"most_runs": 20}), edges(where, s=0.1))
        line = next(line for line in content(found).verdicts if "order of the arms at the edge of collapse" in line)
        assert verdict in line
    tied = conclude(study(arms=arms, search={"most_runs": 20}), edges(dict.fromkeys(arms, -2.2), s=0.1))
    assert any("cannot tell" in line for line in content(tied).verdicts if "order of the arms" in line)
