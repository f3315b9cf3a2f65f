"""The training map: a hidden Markov model of weight statistics, whose states are phases of training.

The model follows arXiv 2308.09543. One Gaussian model with diagonal covariances is fitted to all runs together. The
number of states is chosen by BIC; each number gets the best of several random starts. The state of a run at a
checkpoint is inferred from this and earlier checkpoints only, never from later ones, so that a fork could have been
detected at the time it is reported for.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
MOST_STATES = 8
STARTS = 4
ITERATIONS = 60
FAR = 10.0  # standard deviations at which a statistic is clipped: a diverging run must not hide the other runs' phases
ROUNDING = 1e-12
REMEDY = "training maps need the package hmmlearn: pip install 'trimtab[map]'"


class MapUnavailableError(RuntimeError):
    """No training map can be made; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class TrainingMap:
    """Phases of training, and the path of each run through them.

    Attributes:
        states: number of states, which are numbered by the mean time at which runs are in them.
        bic: Bayesian information criterion for 1, 2, ... states; lower is better.
        paths: (T,) per run, the state at each checkpoint, inferred from this and earlier checkpoints.
        means: (S, F), mean statistics of each state, in standard deviations from their mean over all checkpoints.
        features: columns of the statistics that were used: those that vary.
        transitions: number of runs that go from one state to another, by (from, to).
    """

    states: int
    bic: tuple[float, ...]
    paths: tuple[Integers, ...]
    means: Floats
    features: tuple[int, ...]
    transitions: dict[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class Fork:
    """The checkpoint at which a run leaves the other runs.

    A run is alone at a checkpoint if no other run is in the same state at this checkpoint, the one before or the one
    after. A run that is two checkpoints ahead of all others is therefore alone too.

    Attributes:
        run: index of the run.
        checkpoint: first of two consecutive checkpoints at which the run is alone.
        state: state of the run at this checkpoint.
        others: most frequent state of the other runs at this checkpoint.
    """

    run: int
    checkpoint: int
    state: int
    others: int


def training_map(statistics: Sequence[Floats], *, most_states: int = MOST_STATES, seed: int = 0) -> TrainingMap:
    """Fit a training map.

    Args:
        statistics: (T, F) per run, weight statistics at the same checkpoints for all runs. A run that ended early may
            have fewer checkpoints. The sequence of a run ends before its first non-finite value.
        most_states: largest number of states to try.
        seed: seed of the random starts.

    Raises:
        MapUnavailableError: if hmmlearn is not installed, if there are fewer than 2 runs or fewer than 20 checkpoints
            in all, if no statistic varies, or if no start converges.
    """
    try:
        from hmmlearn.hmm import GaussianHMM
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MapUnavailableError(REMEDY) from error
    sequences = [_sound(np.asarray(sequence, float)) for sequence in statistics]
    kept = [sequence for sequence in sequences if len(sequence)]
    if len(kept) < 2 or sum(len(sequence) for sequence in kept) < 20:
        raise MapUnavailableError("a training map needs at least 2 runs, and 20 checkpoints in all")
    whole = np.concatenate(kept)
    middle, spread = _scale(whole)
    features = np.flatnonzero(spread > ROUNDING * np.abs(whole).max(0))
    if len(features) == 0:
        raise MapUnavailableError("no statistic varies, so there is nothing to map")
    unit = np.where(spread > 0, spread, 1)
    scaled = [np.clip(((sequence - middle) / unit)[:, features], -FAR, FAR) for sequence in sequences]
    data = np.concatenate([sequence for sequence in scaled if len(sequence)])
    lengths = [len(sequence) for sequence in scaled if len(sequence)]
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)  # it warns of every start that stops improving
    fitted: list[Any] = []
    bic: list[float] = []
    for states in range(1, min(most_states, len(data) // 10) + 1):
        best, lowest = None, math.inf
        for start in range(1 if states == 1 else STARTS):
            # A weak prior, because the final state of a run has no transition to another state to count.
            model: Any = GaussianHMM(
                states,
                "diag",
                n_iter=ITERATIONS,
                random_state=seed + start,
                min_covar=1e-3,
                startprob_prior=1.1,
                transmat_prior=1.1,
                implementation="log",
            )
            try:
                # One thread: on matrices this small the synchronisation of several threads costs a factor of ten.
                with np.errstate(all="ignore"), threadpool_limits(1):
                    model.fit(data, lengths)
                    score = float(model.bic(data, lengths))
            except ValueError:  # a start in which a state lost all its checkpoints
                continue
            if math.isfinite(score) and score < lowest:
                best, lowest = model, score
        fitted.append(best)
        bic.append(lowest)
    chosen = fitted[int(np.argmin(bic))]
    if chosen is None:
        raise MapUnavailableError("no start of any number of states converged")
    raw = [_so_far(chosen, sequence) for sequence in scaled]
    order = _by_time(raw, chosen.n_components)
    paths = tuple(order[path] for path in raw)
    means = np.empty_like(chosen.means_)
    means[order] = chosen.means_
    return TrainingMap(
        states=int(chosen.n_components),
        bic=tuple(bic),
        paths=paths,
        means=means,
        features=tuple(int(feature) for feature in features),
        transitions=_transitions(paths),
    )


def forks(fitted: TrainingMap) -> list[Fork]:
    """The first fork of each run that leaves the others. A run is not alone in a state that another run shares."""
    result: list[Fork] = []
    for run, path in enumerate(fitted.paths):
        others = [other for index, other in enumerate(fitted.paths) if index != run and len(other)]
        alone = [_alone(path, checkpoint, others) for checkpoint in range(len(path))]
        for checkpoint in range(len(path) - 1):
            if alone[checkpoint] and alone[checkpoint + 1]:
                there = [int(other[checkpoint]) for other in others if len(other) > checkpoint]
                if there:
                    most = Counter(there).most_common(1)[0][0]
                    result.append(Fork(run, checkpoint, int(path[checkpoint]), most))
                    break
    return result


def _alone(path: Integers, checkpoint: int, others: Sequence[Integers]) -> bool:
    near = {int(state) for other in others for state in other[max(0, checkpoint - 1) : checkpoint + 2]}
    return int(path[checkpoint]) not in near


def _sound(statistics: Floats) -> Floats:
    bad = np.flatnonzero(~np.isfinite(statistics).all(1))
    return statistics[: bad[0]] if len(bad) else statistics


def _scale(whole: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each column, over the values within 10 robust deviations of its median."""
    median = np.median(whole, axis=0)
    robust = 1.4826 * np.median(np.abs(whole - median), axis=0)
    near = (np.abs(whole - median) <= FAR * robust) | (robust == 0)
    kept = np.where(near, whole, np.nan)
    return np.nanmean(kept, axis=0), np.nanstd(kept, axis=0)


def _so_far(model: Any, sequence: Floats) -> Integers:
    """Most likely state at each checkpoint given this and earlier checkpoints: the forward recursion, in log space."""
    if len(sequence) == 0:
        return np.zeros(0, dtype=np.int64)
    variances = np.stack([np.diag(covariance) for covariance in model.covars_])
    squares = (sequence[:, None, :] - model.means_[None]) ** 2 / variances[None]
    emission = -0.5 * (squares + np.log(2 * np.pi * variances)[None]).sum(-1)
    with np.errstate(divide="ignore"):
        start, moves = np.log(model.startprob_), np.log(model.transmat_)
    forward = start + emission[0]
    states = [int(forward.argmax())]
    for row in emission[1:]:
        reach = forward[:, None] + moves
        top = reach.max(0)
        safe = np.where(np.isfinite(top), top, 0.0)
        with np.errstate(divide="ignore"):
            forward = safe + np.log(np.exp(reach - safe).sum(0)) + row
        states.append(int(forward.argmax()))
    return np.array(states, dtype=np.int64)


def _by_time(paths: Sequence[Integers], states: int) -> Integers:
    """New number of each state, (S,), by the mean time at which runs are in it. States never entered come last."""
    when = np.full(states, math.inf)
    for state in range(states):
        times = [float(np.mean(np.flatnonzero(path == state))) for path in paths if (path == state).any()]
        if times:
            when[state] = sum(times) / len(times)
    order = np.empty(states, dtype=np.int64)
    order[np.argsort(when, kind="stable")] = np.arange(states)
    return order


def _transitions(paths: Sequence[Integers]) -> dict[tuple[int, int], int]:
    counts: Counter[tuple[int, int]] = Counter()
    for path in paths:
        counts.update({(int(a), int(b)) for a, b in pairwise(path) if a != b})
    return dict(counts)
