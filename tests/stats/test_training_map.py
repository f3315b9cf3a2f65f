"""The training map: planted phases and forks are found, none is made up, and the future is not looked at."""

from __future__ import annotations

import builtins
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from trimtab.stats import training_map as module
from trimtab.stats.training_map import MapUnavailableError, TrainingMap, forks, training_map

pytest.importorskip("hmmlearn")

CHECKPOINTS = 24
CENTRES = np.array([[0.0, 0.0, 0.0], [4.0, 1.0, -3.0], [8.0, -3.0, 2.0], [0.0, 9.0, 9.0]])


def planted(
    seed: int, *, runs: int = 5, noise: float = 0.4, fork: tuple[int, int] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Runs through three phases at nearly the same times; a fork goes to a fourth phase and stays."""
    rng = np.random.default_rng(seed)
    statistics: list[np.ndarray] = []
    states: list[np.ndarray] = []
    for run in range(runs):
        path = np.repeat([0, 1, 2], 8)
        if run % 2:
            path = np.concatenate([path[:1], path[:-1]])  # one checkpoint later than the others
        if fork and run == fork[0]:
            path[fork[1] :] = 3
        states.append(path)
        statistics.append(CENTRES[path] + noise * rng.normal(size=(CHECKPOINTS, 3)))
    return statistics, states


def agreeing(found: TrainingMap, states: list[np.ndarray]) -> float:
    """Share of the checkpoints that are right under the best numbering."""
    got, true = np.concatenate(found.paths), np.concatenate(states)
    kinds = int(max(got.max(), true.max())) + 1
    return max(float((np.array(names)[got] == true).mean()) for names in permutations(range(kinds)))


def same(first: TrainingMap, second: TrainingMap) -> bool:
    return (
        first.bic == second.bic
        and all(np.array_equal(a, b) for a, b in zip(first.paths, second.paths, strict=True))
        and np.array_equal(first.means, second.means)
        and (first.features, first.transitions) == (second.features, second.transitions)
    )


@pytest.mark.parametrize("seed", range(3))
def test_planted_phases_are_found_and_numbered_by_time(seed: int) -> None:
    statistics, states = planted(seed)
    found = training_map(statistics, most_states=5)
    assert found.states == 3
    assert agreeing(found, states) >= 0.95
    assert float((np.concatenate(found.paths) == np.concatenate(states)).mean()) >= 0.95
    assert found.transitions == {(0, 1): 5, (1, 2): 5}
    assert int(np.argmin(found.bic)) == 2
    assert len(found.bic) == 5


def test_the_means_are_those_of_the_phases() -> None:
    statistics, states = planted(0)
    found = training_map(statistics, most_states=5)
    whole, true = np.concatenate(statistics), np.concatenate(states)
    scaled = (whole - whole.mean(0)) / whole.std(0)
    expected = [scaled[true == state].mean(0) for state in range(3)]
    assert found.means == pytest.approx(np.array(expected), abs=0.05)
    assert found.features == (0, 1, 2)


@pytest.mark.parametrize(("run", "checkpoint"), [(2, 10), (0, 5), (4, 19)])
def test_a_planted_fork_is_found_where_it_is(run: int, checkpoint: int) -> None:
    statistics, states = planted(7, fork=(run, checkpoint))
    found = training_map(statistics, most_states=5)
    assert found.states == 4
    assert agreeing(found, states) >= 0.95
    (fork,) = forks(found)
    assert fork.run == run
    assert abs(fork.checkpoint - checkpoint) <= 1
    assert fork.state != fork.others
    assert fork.state == found.paths[run][fork.checkpoint]


@pytest.mark.parametrize("seed", range(6))
def test_no_fork_is_invented(seed: int) -> None:
    statistics, _ = planted(seed, noise=0.8)
    assert forks(training_map(statistics, most_states=5)) == []


@pytest.mark.parametrize("seed", range(4))
def test_no_fork_is_invented_in_runs_that_drift_smoothly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drift = np.linspace(0, 1, CHECKPOINTS)[:, None] * [3.0, -2.0, 1.0]
    statistics = [drift + 0.1 * rng.normal(size=(CHECKPOINTS, 3)) for _ in range(6)]
    assert forks(training_map(statistics, most_states=5)) == []


def test_noise_alone_is_one_phase() -> None:
    rng = np.random.default_rng(0)
    found = training_map([rng.normal(size=(CHECKPOINTS, 3)) for _ in range(5)], most_states=5)
    assert found.states == 1
    assert found.transitions == {}
    assert forks(found) == []


def test_runs_that_share_a_by_way_do_not_fork() -> None:
    statistics, _ = planted(1, runs=6, fork=(2, 10))
    other, _ = planted(2, runs=6, fork=(3, 10))
    statistics[3] = other[3]
    assert forks(training_map(statistics, most_states=5)) == []


def test_columns_that_never_change_are_dropped() -> None:
    statistics, _ = planted(3)
    constant = [np.column_stack([np.full(CHECKPOINTS, 0.1), one, np.full(CHECKPOINTS, -1e9)]) for one in statistics]
    found, plain = training_map(constant, most_states=4), training_map(statistics, most_states=4)
    assert found.features == (1, 2, 3)
    assert found.means.shape == (3, 3)
    assert found.bic == plain.bic


def test_the_unit_of_a_statistic_does_not_matter() -> None:
    statistics, _ = planted(4)
    plain = training_map(statistics, most_states=4)
    scaled = training_map([one * [1e-6, 1.0, 1e6] + [0.0, -5.0, 1e6] for one in statistics], most_states=4)
    assert all(np.array_equal(a, b) for a, b in zip(plain.paths, scaled.paths, strict=True))
    assert scaled.bic == pytest.approx(plain.bic, rel=1e-6)


def test_shorter_runs_and_runs_that_end_in_nan_are_mapped_as_far_as_they_go() -> None:
    statistics, states = planted(5)
    statistics[1] = statistics[1][:15]
    statistics[2] = statistics[2].copy()
    statistics[2][12, 1] = np.nan
    statistics[3] = statistics[3].copy()
    statistics[3][0, 0] = np.inf
    found = training_map(statistics, most_states=4)
    assert [len(path) for path in found.paths] == [24, 15, 12, 0, 24]
    known = [one[: len(path)] for one, path in zip(states, found.paths, strict=True)]
    assert agreeing(found, known) >= 0.95
    assert forks(found) == []


def test_the_input_is_left_as_it_was() -> None:
    statistics, _ = planted(6)
    copies = [one.copy() for one in statistics]
    training_map(statistics, most_states=3)
    assert all(np.array_equal(a, b) for a, b in zip(statistics, copies, strict=True))


def test_the_same_data_and_seed_give_the_same_map() -> None:
    statistics, _ = planted(8, fork=(1, 9))
    np.random.seed(1)
    one = training_map(statistics, most_states=4)
    np.random.seed(2)
    assert same(one, training_map(statistics, most_states=4))


# --- nothing is known of the future -----------------------------------------------------------------------------------


def fitted_model(seed: int) -> tuple[Any, list[np.ndarray]]:
    from hmmlearn.hmm import GaussianHMM

    statistics, _ = planted(seed, noise=1.5)
    model = GaussianHMM(3, "diag", n_iter=20, random_state=0)
    model.fit(np.concatenate(statistics), [len(one) for one in statistics])
    return model, statistics


def test_the_state_at_a_checkpoint_does_not_depend_on_later_ones() -> None:
    model, statistics = fitted_model(0)
    for sequence in statistics:
        whole = module._so_far(model, sequence)
        for length in range(len(sequence) + 1):
            assert np.array_equal(module._so_far(model, sequence[:length]), whole[:length])


def test_the_state_is_the_likeliest_by_the_posterior_of_the_prefix() -> None:
    # hmmlearn smooths over all that it is given, so the last posterior of a prefix is the one given only the past.
    model, statistics = fitted_model(1)
    for sequence in statistics:
        expected = [int(model.predict_proba(sequence[: end + 1])[-1].argmax()) for end in range(len(sequence))]
        assert module._so_far(model, sequence).tolist() == expected


def test_looking_ahead_would_change_states_so_that_the_rule_can_be_told_from_its_breach() -> None:
    model, statistics = fitted_model(2)
    changed = sum(int((model.predict(one) != module._so_far(model, one)).sum()) for one in statistics)
    assert changed > 0


def test_a_far_checkpoint_does_not_make_the_state_undefined() -> None:
    model, statistics = fitted_model(3)
    far = statistics[0].copy()
    far[10:] *= 1e4
    states = module._so_far(model, far)
    assert ((states >= 0) & (states < 3)).all()
    assert np.array_equal(states[:10], module._so_far(model, statistics[0])[:10])


@pytest.mark.parametrize("features", [3, 12, 40])
def test_a_run_that_explodes_does_not_take_the_map_away(features: int) -> None:
    rng = np.random.default_rng(0)
    statistics = [
        np.repeat([0.0, 4.0, 8.0], 8)[:, None] + 0.4 * rng.normal(size=(CHECKPOINTS, features)) for _ in range(5)
    ]
    statistics[0][-1] = 1e6
    found = training_map(statistics, most_states=3)
    assert len(found.paths[0]) == CHECKPOINTS


def test_one_far_checkpoint_at_the_end_of_a_run_does_not_hide_the_phases() -> None:
    # A state that is only ever last has no way out; that must not do away with every model that gives it a state.
    statistics, _ = planted(0)
    statistics[0][-1] = 30.0
    found = training_map(statistics, most_states=5)
    assert found.states >= 3
    assert np.isfinite(found.bic).all()


def test_statistics_that_are_tiny_in_their_unit_are_not_taken_for_constant() -> None:
    statistics, _ = planted(0)
    found = training_map([1e-14 * one for one in statistics], most_states=3)
    assert found.states == 3


# --- forks, on paths written by hand ----------------------------------------------------------------------------------


def of_paths(*paths: list[int]) -> TrainingMap:
    states = max(state for path in paths for state in path) + 1
    whole = tuple(np.array(path, dtype=np.int64) for path in paths)
    return TrainingMap(states, (0.0,), whole, np.zeros((states, 1)), (0,), {})


def test_the_fork_is_at_the_first_of_two_checkpoints_alone() -> None:
    (fork,) = forks(of_paths([0, 0, 1, 1, 1], [0, 0, 2, 2, 2], [0, 0, 1, 1, 1]))
    assert (fork.run, fork.checkpoint, fork.state, fork.others) == (1, 2, 2, 1)


def test_one_checkpoint_alone_is_no_fork() -> None:
    assert forks(of_paths([0, 0, 1, 1, 1], [0, 0, 2, 1, 1], [0, 0, 1, 1, 1])) == []


def test_being_one_checkpoint_early_or_late_is_no_fork() -> None:
    assert forks(of_paths([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1])) == []


def test_being_last_of_all_runs_is_no_fork() -> None:
    assert forks(of_paths([0, 0, 1], [0, 0, 1, 2, 2, 2], [0, 0])) == []


def test_only_the_first_fork_of_a_run_counts() -> None:
    found = forks(of_paths([0, 0, 0, 0, 0, 0, 0], [0, 2, 2, 0, 0, 3, 3], [0, 0, 0, 0, 0, 0, 0]))
    assert [(fork.run, fork.checkpoint) for fork in found] == [(1, 1)]


def test_a_run_without_checkpoints_neither_forks_nor_hides_a_fork() -> None:
    found = forks(of_paths([0, 0, 1, 1], [], [0, 0, 2, 2], [0, 0, 1, 1]))
    assert [fork.run for fork in found] == [2]


# --- where there is no map --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statistics",
    [
        [],
        [np.random.default_rng(0).normal(size=(50, 2))],
        [np.random.default_rng(0).normal(size=(9, 2))] * 2,
        [np.random.default_rng(0).normal(size=(50, 2)), np.full((50, 2), np.nan)],
        [np.ones((30, 2))] * 3,
        [np.full((30, 2), 0.1)] * 3,
    ],
    ids=["nothing", "one run", "18 checkpoints", "one sound run", "constant", "constant but for rounding"],
)
def test_too_little_data_gives_no_map_and_says_why(statistics: list[np.ndarray]) -> None:
    with pytest.raises(MapUnavailableError, match=r"at least 2 runs|no statistic varies"):
        training_map(statistics, most_states=3)


def test_without_hmmlearn_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("hmmlearn"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MapUnavailableError, match="pip install"):
        training_map([np.zeros((30, 1))] * 2)
