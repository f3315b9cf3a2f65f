"""The cross-validated area under the ROC curve: what it is, what it must not know, and whether its interval covers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from trimtab.stats.prediction import Judged, area, gain, judge

STUDIES, RESAMPLES, LEAST_COVERAGE = 100, 300, 0.91  # each study fits several hundred models


class Runs:
    """Every method with every seed at every learning rate."""

    def __init__(self, methods: int = 6, seeds: int = 6, rates: int = 3) -> None:
        grid = np.indices((methods, seeds, rates)).reshape(3, -1)
        self.method, self.seed, self.rate = grid
        self.count = grid.shape[1]

    def judge(self, features: np.ndarray, failed: np.ndarray, *, strata: Sequence[Any] | None = None) -> Judged:
        features = features[:, None] if features.ndim == 1 else features
        rates = self.rate.tolist() if strata is None else strata
        return judge(features, failed.tolist(), rates, self.method.tolist(), self.seed.tolist())


def auc_by_loops(score: Sequence[float], failed: Sequence[bool], strata: Sequence[Any]) -> float:
    won = pairs = 0.0
    for bad in range(len(score)):
        for good in range(len(score)):
            if failed[bad] and not failed[good] and strata[bad] == strata[good]:
                pairs += 1
                won += 1.0 if score[bad] > score[good] else 0.5 if score[bad] == score[good] else 0.0
    return won / pairs if pairs else math.nan


def leaky_area(features: np.ndarray, failed: np.ndarray, folds: int = 6) -> float:
    """What one would get with random folds over runs: a logistic model that sees the same seeds and methods."""
    fold = np.random.default_rng(0).permutation(len(failed)) % folds
    score = np.zeros(len(failed))
    for held in range(folds):
        free = fold != held
        x = np.column_stack([features, np.ones(len(failed))])
        weights = np.zeros(x.shape[1])
        for _ in range(15):
            chance = 1 / (1 + np.exp(-x[free] @ weights))
            slope = x[free].T @ (failed[free] - chance) - 0.1 * weights
            curvature = (x[free] * (chance * (1 - chance))[:, None]).T @ x[free] + 0.1 * np.eye(x.shape[1])
            weights += np.linalg.solve(curvature, slope)
        score[~free] = (x @ weights)[~free]
    return auc_by_loops(score.tolist(), failed.tolist(), [0] * len(failed))


# --- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(5))
def test_with_one_clear_direction_the_area_is_that_of_plain_loops(case: int) -> None:
    rng, runs = np.random.default_rng(case), Runs(4, 4, 3)
    failed = rng.random(runs.count) < 0.5
    feature = np.round(2 * failed + rng.normal(size=runs.count), 1)  # rounded, so that there are ties
    judged = runs.judge(feature, failed)
    expected = auc_by_loops(feature.tolist(), failed.tolist(), runs.rate.tolist())
    found = area(judged, resamples=50)
    assert judged.untrained == 0
    assert found.estimate == pytest.approx(expected, abs=1e-12)
    assert found.pairs == len(judged.won)
    reversed_direction = area(runs.judge(-feature, failed), resamples=50)
    assert reversed_direction.estimate == pytest.approx(expected, abs=1e-12)


def test_every_failing_run_meets_every_sound_one_of_its_stratum_once() -> None:
    rng, runs = np.random.default_rng(0), Runs(3, 3, 2)
    failed = rng.random(runs.count) < 0.4
    judged = runs.judge(rng.normal(size=runs.count), failed)
    found = set(zip(judged.failing.tolist(), judged.sound.tolist(), strict=True))
    expected = {
        (bad, good)
        for bad in range(runs.count)
        for good in range(runs.count)
        if failed[bad] and not failed[good] and runs.rate[bad] == runs.rate[good]
    }
    assert found == expected
    assert len(judged.failing) == len(expected)


def test_the_verdict_on_a_pair_is_learnt_from_other_methods_and_seeds_only() -> None:
    # All runs but those of method 0 and of seed 0 say that high is bad. Runs of method 0 or seed 0 say the reverse, far
    # more loudly. A pair of method 0 and seed 0 must follow those that share neither with it.
    rng, runs = np.random.default_rng(0), Runs(5, 5, 3)
    failed = rng.random(runs.count) < 0.5
    strange = (runs.method == 0) | (runs.seed == 0)
    feature = np.where(strange, -100.0, 1.0) * (failed - 0.5) + 0.01 * rng.normal(size=runs.count)
    judged = runs.judge(feature, failed, strata=[0] * runs.count)
    both = (runs.method == 0) & (runs.seed == 0)
    within = both[judged.failing] & both[judged.sound]
    assert within.any()
    assert (judged.won[within] == 0).all()  # told that high is bad, whereas here low is


def test_what_happened_to_runs_of_the_same_methods_or_seeds_changes_no_verdict() -> None:
    rng, runs = np.random.default_rng(1), Runs(5, 5, 2)
    failed = rng.random(runs.count) < 0.5
    features = rng.normal(size=(runs.count, 2)) + 0.5 * failed[:, None]
    plain = runs.judge(features, failed)
    for pair in range(0, len(plain.won), 37):
        bad, good = int(plain.failing[pair]), int(plain.sound[pair])
        kin = np.isin(runs.method, runs.method[[bad, good]]) | np.isin(runs.seed, runs.seed[[bad, good]])
        kin[[bad, good]] = False
        other_features, other_failed = features.copy(), failed.copy()
        other_features[kin] = 50 * rng.normal(size=(int(kin.sum()), 2))
        other_failed[kin] = rng.random(int(kin.sum())) < 0.5
        other = runs.judge(other_features, other_failed)
        there = (other.failing == bad) & (other.sound == good)
        assert other.won[there] == plain.won[pair]


def test_the_unit_of_a_feature_and_the_order_of_runs_change_no_verdict() -> None:
    rng, runs = np.random.default_rng(2), Runs(4, 4, 3)
    failed = rng.random(runs.count) < 0.5
    features = rng.normal(size=(runs.count, 3)) + 0.5 * failed[:, None]
    plain = runs.judge(features, failed)
    scaled = runs.judge(features * [1e-6, 3.0, 1e9] + [5.0, 0.0, -2e9], failed)
    assert (plain.won == scaled.won).all()
    order = rng.permutation(runs.count)
    moved = judge(
        features[order],
        failed[order].tolist(),
        runs.rate[order].tolist(),
        runs.method[order].tolist(),
        runs.seed[order].tolist(),
    )
    assert area(moved, resamples=50).estimate == area(plain, resamples=50).estimate
    assert area(moved, resamples=50).low == area(plain, resamples=50).low


def test_methods_and_seeds_may_be_names() -> None:
    rng, runs = np.random.default_rng(3), Runs(4, 4, 3)
    failed = rng.random(runs.count) < 0.5
    feature = rng.normal(size=(runs.count, 1)) + failed[:, None]
    named = judge(
        feature,
        failed.tolist(),
        [("small", 2.0**rate) for rate in runs.rate],
        [f"method {m}" for m in runs.method],
        [f"seed {s}" for s in runs.seed],
    )
    assert area(named, resamples=50) == area(runs.judge(feature, failed), resamples=50)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_counts_as_worse_than_any_that_is(bad: float) -> None:
    rng, runs = np.random.default_rng(4), Runs(4, 4, 3)
    failed = rng.random(runs.count) < 0.5
    feature = failed + 0.7 * rng.normal(size=runs.count)
    broken = failed & (rng.random(runs.count) < 0.5)
    with_bad = runs.judge(np.where(broken, bad, feature), failed)
    as_if_huge = runs.judge(np.where(broken, feature.max() + 1, feature), failed)
    assert (with_bad.won == as_if_huge.won).all()
    assert with_bad.won[broken[with_bad.failing]].min() == 1
    assert area(with_bad, resamples=50).estimate > area(runs.judge(feature, failed), resamples=50).estimate


def test_a_value_that_is_not_finite_is_worse_even_where_all_others_are_equal() -> None:
    runs = Runs(4, 4, 2)
    failed = (runs.method + runs.seed) % 2 == 0
    judged = runs.judge(np.where(failed, math.nan, 5.0), failed)
    assert area(judged, resamples=50).estimate == 1.0


def test_a_feature_that_is_never_finite_says_nothing() -> None:
    runs = Runs(4, 4, 2)
    failed = (runs.method + runs.seed) % 2 == 0
    assert area(runs.judge(np.full(runs.count, math.nan), failed), resamples=50).estimate == 0.5


@pytest.mark.parametrize("all_fail", [True, False])
def test_without_a_failing_and_a_sound_run_there_is_no_area(all_fail: bool) -> None:
    runs = Runs(3, 3, 2)
    judged = runs.judge(np.arange(18.0), np.full(18, all_fail))
    found = area(judged, resamples=50)
    assert found.pairs == 0
    assert judged.untrained == 0
    assert all(math.isnan(value) for value in (found.estimate, found.low, found.high, found.visible))
    assert math.isnan(gain(judged, judged, resamples=50).estimate)


def test_no_runs_at_all_have_no_area() -> None:
    assert area(judge(np.zeros((0, 2)), [], [], [], []), resamples=50).pairs == 0


@pytest.mark.parametrize(("methods", "seeds"), [(1, 6), (6, 1), (2, 2)])
def test_pairs_without_others_to_learn_from_are_ties(methods: int, seeds: int) -> None:
    runs = Runs(methods, seeds, 2)
    failed = (runs.method + runs.seed) % 2 == 0
    judged = runs.judge(failed.astype(float), failed)
    assert judged.untrained == len(judged.won) > 0
    assert (judged.won == 0.5).all()


def test_the_gain_is_the_difference_of_two_areas_on_the_same_pairs() -> None:
    rng, runs = np.random.default_rng(5), Runs(5, 5, 3)
    failed = rng.random(runs.count) < 0.5
    good = runs.judge(failed + 0.5 * rng.normal(size=runs.count), failed)
    poor = runs.judge(rng.normal(size=runs.count), failed)
    found = gain(good, poor, resamples=RESAMPLES)
    assert found.estimate == pytest.approx(
        area(good, resamples=50).estimate - area(poor, resamples=50).estimate, abs=1e-12
    )
    assert 0 < found.low < found.estimate < found.high
    nothing = gain(good, good, resamples=50)
    assert (nothing.estimate, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


def test_the_gain_refuses_other_pairs() -> None:
    runs = Runs(3, 3, 2)
    failed = (runs.method + runs.seed) % 2 == 0
    with pytest.raises(ValueError, match="same pairs"):
        gain(runs.judge(np.arange(18.0), failed), runs.judge(np.arange(18.0), ~failed))


def test_runs_of_one_method_are_resampled_together_and_so_are_those_of_one_method_and_seed() -> None:
    runs = Runs(4, 5, 3)
    judged = runs.judge(np.arange(60.0), np.arange(60) % 2 == 0)
    for one in range(60):
        for other in range(60):
            kin = runs.method[one] == runs.method[other]
            assert (judged.method[one] == judged.method[other]) == kin
            assert (judged.twin[one] == judged.twin[other]) == (kin and runs.seed[one] == runs.seed[other])


def test_the_same_seed_gives_the_same_area_and_interval() -> None:
    rng, runs = np.random.default_rng(6), Runs(4, 4, 3)
    failed = rng.random(runs.count) < 0.5
    judged = runs.judge(rng.normal(size=runs.count), failed)
    assert area(judged, resamples=50) == area(judged, resamples=50)
    assert area(judged, resamples=50, seed=1).low != area(judged, resamples=50).low


# --- planted leaks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "code"),
    [
        ("method", "one-hot"),
        *(
            pytest.param(*each, marks=pytest.mark.nightly)
            for each in (("method", "random"), ("seed", "one-hot"), ("seed", "random"))
        ),
    ],
)
def test_knowing_who_a_run_is_does_not_help(axis: str, code: str) -> None:
    # Half of the seeds, or of the methods, fail whatever else they do. The features name them and say nothing else.
    runs = Runs(6, 6, 3)
    label: np.ndarray = getattr(runs, axis)
    honest: list[float] = []
    leaky: list[float] = []
    for study in range(30):
        rng = np.random.default_rng(study)
        failing = rng.permutation(6)[:3]
        failed = np.isin(label, failing)
        codes = np.eye(6) if code == "one-hot" else rng.normal(size=(6, 8))
        features = codes[label]
        honest.append(area(runs.judge(features, failed), resamples=5).estimate)
        leaky.append(leaky_area(features, failed))
    assert np.mean(leaky) > 0.9  # else the trap would catch nobody
    assert abs(float(np.mean(honest)) - 0.5) < 0.06
    if code == "one-hot":
        assert set(honest) == {0.5}


def test_the_learning_rate_alone_does_not_help() -> None:
    runs = Runs(6, 6, 4)
    chance = np.array([0.02, 0.2, 0.8, 0.98])[runs.rate]
    within: list[float] = []
    across: list[float] = []
    for study in range(30):
        rng = np.random.default_rng(study)
        failed = rng.random(runs.count) < chance
        feature = runs.rate + 0.05 * rng.normal(size=runs.count)
        within.append(area(runs.judge(feature, failed), resamples=5).estimate)
        across.append(auc_by_loops(feature.tolist(), failed.tolist(), [0] * runs.count))
    assert np.mean(across) > 0.9
    assert abs(float(np.mean(within)) - 0.5) < 0.06


def test_labels_drawn_at_random_are_not_predicted() -> None:
    runs = Runs(5, 5, 3)
    found: list[float] = []
    for study in range(40):
        rng = np.random.default_rng(study)
        judged = runs.judge(rng.normal(size=(runs.count, 6)), rng.random(runs.count) < 0.4)
        found.append(area(judged, resamples=5).estimate)
    assert abs(float(np.mean(found)) - 0.5) < 0.03


def test_a_genuine_signal_is_found_among_features_that_name_the_run() -> None:
    rng, runs = np.random.default_rng(9), Runs(6, 6, 3)
    failed = rng.random(runs.count) < np.array([0.2, 0.5, 0.8])[runs.rate]
    signal = 2 * failed + rng.normal(size=runs.count)
    features = np.column_stack([signal, np.eye(6)[runs.seed], np.eye(6)[runs.method], runs.rate])
    found = area(runs.judge(features, failed), resamples=RESAMPLES)
    assert found.estimate > 0.8
    assert found.low > 0.5


# --- coverage ---------------------------------------------------------------------------------------------------------


def draw(
    rng: np.random.Generator, runs: Runs, *, effect: float = 1.0, of_method: float = 0.5, of_seed: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """A feature that moves with failure, and with the method and the seed, which failure does not depend on."""
    failed = rng.random(runs.count) < np.array([0.3, 0.5, 0.7])[runs.rate]
    methods, seeds = of_method * rng.normal(size=6), of_seed * rng.normal(size=6)
    feature = effect * failed + methods[runs.method] + seeds[runs.seed] + rng.normal(size=runs.count)
    return feature, failed


def true_area(rng: np.random.Generator, runs: Runs, studies: int = 4000, **effects: float) -> float:
    """The mean over studies of the area of the known direction."""
    total = 0.0
    for _ in range(studies):
        feature, failed = draw(rng, runs, **effects)
        won = pairs = 0.0
        for rate in range(3):
            here = runs.rate == rate
            sound, failing = feature[here & ~failed], feature[here & failed]
            won += float((failing[:, None] > sound[None, :]).sum())
            pairs += len(sound) * len(failing)
        total += won / pairs
    return total / studies


@pytest.mark.nightly
def test_the_interval_of_the_area_covers() -> None:
    rng, runs = np.random.default_rng(31), Runs()
    truth = true_area(rng, runs)
    covered = 0
    for study in range(STUDIES):
        feature, failed = draw(rng, runs)
        found = area(runs.judge(feature, failed), resamples=RESAMPLES, seed=study)
        covered += found.low <= truth <= found.high
    assert 0.65 < truth < 0.85
    assert covered / STUDIES >= LEAST_COVERAGE


@pytest.mark.nightly
def test_a_method_that_moves_both_failure_and_feature_is_seldom_taken_for_a_signal() -> None:
    # Nothing within a method tells failing from sound runs; the methods differ in how often they fail and in the
    # feature. To take the runs of one method for independent witnesses would call many such studies a success.
    runs = Runs()
    wrong = 0
    for study in range(STUDIES):
        rng = np.random.default_rng(study)
        log_odds = np.array([-0.85, 0.0, 0.85])[runs.rate] + 2 * rng.normal(size=6)[runs.method]
        failed = rng.random(runs.count) < 1 / (1 + np.exp(-log_odds))
        feature = rng.normal(size=6)[runs.method] + 0.3 * rng.normal(size=6)[runs.seed] + rng.normal(size=runs.count)
        found = area(runs.judge(feature, failed), resamples=RESAMPLES, seed=study)
        wrong += not found.low <= 0.5 <= found.high
    assert wrong / STUDIES <= 1 - LEAST_COVERAGE
