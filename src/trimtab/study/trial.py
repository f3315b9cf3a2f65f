"""Planned runs of a study, and functions of their results."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from trimtab.run.folder import Outcome

SIXTEENTH = 16  # ticks in an octave of learning rate
EARLIER = 50_000  # added to the round of a run that only the search of an earlier version asks for


class Tick(int):
    """A learning rate as a whole number of sixteenths of an octave: 2^(tick/16)."""

    @classmethod
    def nearest(cls, learning_rate: float) -> Tick:
        """The tick whose learning rate is nearest, in octaves.

        Raises:
            ValueError: if the learning rate is not positive and finite.
        """
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"a learning rate must be positive and finite, got {learning_rate}")
        return cls(round(math.log2(learning_rate) * SIXTEENTH))

    @property
    def octave(self) -> float:
        """log2 of the learning rate."""
        return self / SIXTEENTH

    @property
    def learning_rate(self) -> float:
        """The learning rate."""
        return 2.0**self.octave


@dataclass(frozen=True, slots=True, order=True)
class Trial:
    """One planned run.

    Attributes:
        tick: peak LR.
        seed: seed of every random stream except that of ``data_seed``.
        data_seed: seed of the order of the data; None takes ``seed``.
        repeat: number of the repeat of a run with the same seeds and other rounding; 0 for the run itself.
    """

    round: int
    arm: str
    tick: Tick
    seed: int
    data_seed: int | None = None
    repeat: int = 0

    @property
    def learning_rate(self) -> float:
        """Peak LR."""
        return self.tick.learning_rate

    @property
    def of_earlier_version(self) -> bool:
        """Whether only the search of an earlier version asks for this run. It stays evidence."""
        return EARLIER <= self.round < 2 * EARLIER

    @property
    def title(self) -> str:
        """The run in words, such as 'qk_norm at LR 0.0312, seed 0'."""
        return f"{self.arm} at LR {self.learning_rate:.3g}, {self.seeds_named}"

    @property
    def seeds_named(self) -> str:
        """The seeds in words, such as 'seed 0' or 'init 0, data 3'."""
        seeds = f"seed {self.seed}" if self.data_seed is None else f"init {self.seed}, data {self.data_seed}"
        return f"{seeds}, repeat {self.repeat}" if self.repeat else seeds


Results = Mapping[Trial, Outcome | None]


def earlier_round(number: int) -> int:
    """The round of a run of an earlier version. Rounds 0 and 1 kept their meaning; the search makes the others."""
    return number if number <= 1 else EARLIER + number


@dataclass(frozen=True, slots=True)
class Best:
    """An arm's lowest mean final loss at one LR, and that LR; nan and the arm's lowest LR if no mean is finite."""

    loss: float
    tick: Tick


def best_of(arm: str, results: Results) -> Best:
    """The lowest mean final loss over seeds at one LR. An LR at which a seed has no finite loss is ignored."""
    by_tick = finals_of(arm, results)
    means = {tick: sum(v) / len(v) for tick, v in by_tick.items() if all(math.isfinite(loss) for loss in v)}
    if not means:
        return Best(math.nan, min(by_tick, default=Tick(0)))
    tick = min(means, key=lambda tick: (means[tick], tick))
    return Best(means[tick], tick)


def finals_of(arm: str, results: Results) -> dict[Tick, list[float]]:
    """The final losses of an arm by LR, in the order of ``order_of``."""
    finals: dict[Tick, list[float]] = {}
    for trial in sorted(results, key=order_of):
        outcome = results[trial]
        if trial.arm == arm and outcome is not None:
            finals.setdefault(trial.tick, []).append(outcome.final_loss)
    return finals


def order_of(trial: Trial) -> tuple[int, str, int, int, int, int]:
    """Sort key: round, arm, LR, seeds and repeat. A trial with ``data_seed`` None comes first."""
    data_seed = -1 if trial.data_seed is None else trial.data_seed
    return trial.round, trial.arm, trial.tick, trial.seed, data_seed, trial.repeat


def seed_by_seed(trials: Collection[Trial], arms: Sequence[str]) -> list[Trial]:
    """The trials by seeds, round, arm and LR, with the arms in the order given, whatever order the trials came in."""
    place = {arm: index for index, arm in enumerate(arms)}

    def key(trial: Trial) -> tuple[int, int, int, int, int, int]:
        data_seed = -1 if trial.data_seed is None else trial.data_seed
        return trial.seed, data_seed, trial.repeat, trial.round, place[trial.arm], trial.tick

    return sorted(trials, key=key)
