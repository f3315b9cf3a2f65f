"""The training map: a hidden Markov model of weight statistics, whose states are phases that runs pass through.

After arXiv 2308.09543: one Gaussian model with diagonal covariances for all runs together, the number of states by
BIC, each the best of several starts. A run's state at a checkpoint is said from that checkpoint and those before it,
never from later ones, so that a fork which is found early could have been seen early.
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
FAR = 10.0  # deviations at which a statistic is cut: one run that explodes must not hide the phases of the others
ROUNDING = 1e-12
REMEDY = "training maps take the package hmmlearn: pip install 'trimtab[map]'"


class MapUnavailableError(RuntimeError):
    """There is no training map; the message says what would give one."""


@dataclass(frozen=True, slots=True)
class TrainingMap:
    """Phases of training.

    Attributes:
        states: how many; numbered by when runs are in them on average.
        bic: of each number of states that was tried, from 1; lower is better.
        paths: of each run, its state at each checkpoint, (T,), from what was known then.
        means: of each state, the statistics as standard deviations from their mean over all checkpoints, (S, F).
        features: the columns of the statistics that vary, and so were used.
        transitions: how many runs go from one state to another, by (from, to).
    """

    states: int
    bic: tuple[float, ...]
    paths: tuple[Integers, ...]
    means: Floats
    features: tuple[int, ...]
    transitions: dict[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a run leaves the others.

    Attributes:
        run: its place among the runs.
        checkpoint: the first at which it is, and at the next still is, in a state where no other run is at that time
            or one checkpoint before or after; so a run that is two checkpoints ahead of all others leaves them too.
        state: that it is in there.
        others: the state that most others are in.
    """

    run: int
    checkpoint: int
    state: int
    others: int


def training_map(statistics: Sequence[Floats], *, most_states: int = MOST_STATES, seed: int = 0) -> TrainingMap:
    """Fit a map to the statistics of each run, (T, F), all at the same checkpoints.

    A run that ended early may be shorter. Checkpoints with a value that is not finite end a run's sequence.

    Raises:
        MapUnavailableError: if hmmlearn is not installed, or there are fewer than 2 runs or 20 checkpoints in all.
    """
    try:
        from hmmlearn.hmm import GaussianHMM
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MapUnavailableError(REMEDY) from error
    sequences = [_sound(np.asarray(one, float)) for one in statistics]
    kept = [one for one in sequences if len(one)]
    if len(kept) < 2 or sum(len(one) for one in kept) < 20:
        raise MapUnavailableError("a training map takes at least 2 runs and 20 checkpoints in all")
    whole = np.concatenate(kept)
    middle, spread = _scale(whole)
    features = np.flatnonzero(spread > ROUNDING * np.abs(whole).max(0))
    if len(features) == 0:
        raise MapUnavailableError("no statistic varies, so there is nothing to map")
    scaled = [np.clip(((one - middle) / np.where(spread > 0, spread, 1))[:, features], -FAR, FAR) for one in sequences]
    data, lengths = np.concatenate([one for one in scaled if len(one)]), [len(one) for one in scaled if len(one)]
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)  # it reports every start that stops improving
    fitted: list[Any] = []
    bic: list[float] = []
    for states in range(1, min(most_states, len(data) // 10) + 1):
        best, lowest = None, math.inf
        for start in range(1 if states == 1 else STARTS):
            # A prior a little above none, as a state that a run ends in is left for no other.
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
                # Matrices this small are slowed down ten times by threads that wait for each other.
                with np.errstate(all="ignore"), threadpool_limits(1):
                    model.fit(data, lengths)
                    score = float(model.bic(data, lengths))
            except ValueError:  # a start whose state lost all its checkpoints
                continue
            if math.isfinite(score) and score < lowest:
                best, lowest = model, score
        fitted.append(best)
        bic.append(lowest)
    chosen = fitted[int(np.argmin(bic))]
    if chosen is None:
        raise MapUnavailableError("no start of any number of states converged")
    raw = [_so_far(chosen, one) for one in scaled]
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


def forks(found: TrainingMap) -> list[Fork]:
    """The first fork of each run that leaves the others; runs that share a by-way do not count as leaving."""
    result: list[Fork] = []
    for run, path in enumerate(found.paths):
        others = [other for index, other in enumerate(found.paths) if index != run and len(other)]
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
    """Mean and deviation of each column over what lies within 10 robust deviations of its median."""
    median = np.median(whole, axis=0)
    robust = 1.4826 * np.median(np.abs(whole - median), axis=0)
    near = (np.abs(whole - median) <= FAR * robust) | (robust == 0)
    kept = np.where(near, whole, np.nan)
    return np.nanmean(kept, axis=0), np.nanstd(kept, axis=0)


def _so_far(model: Any, sequence: Floats) -> Integers:
    """The likeliest state at each checkpoint given it and those before: the forward recursion, in logarithms."""
    if len(sequence) == 0:
        return np.zeros(0, dtype=np.int64)
    variances = np.stack([np.diag(one) for one in model.covars_])
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
    """New numbers of the states, (S,): by when runs are in them on average, those never entered last."""
    when = np.full(states, math.inf)
    for state in range(states):
        times = [float(np.mean(np.flatnonzero(path == state))) for path in paths if (path == state).any()]
        if times:
            when[state] = sum(times) / len(times)
    order = np.empty(states, dtype=np.int64)
    order[np.argsort(when, kind="stable")] = np.arange(states)
    return order


def _transitions(paths: Sequence[Integers]) -> dict[tuple[int, int], int]:
    found: Counter[tuple[int, int]] = Counter()
    for path in paths:
        found.update({(int(a), int(b)) for a, b in pairwise(path) if a != b})
    return dict(found)
