"""Settings that kinds of study share: the tested learning rates, and the criterion of failure."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from trimtab.study.trial import SIXTEENTH, Tick

MOST_TRIALS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRates:
    """The tested range and the spacing of the first, coarse sweep. Equal bounds are a single rate.

    Raises:
        ValueError: if a bound is not positive, the range is reversed, or the spacing is not a multiple of 1/16 octave.
    """

    low: float
    high: float
    octaves_apart: float = 1.0

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not self.low <= self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        apart = self.octaves_apart * SIXTEENTH
        if not math.isfinite(apart) or apart != round(apart) or apart <= 0:
            raise ValueError(f"octaves_apart must be a positive multiple of 1/16, got {self.octaves_apart}")
        if self.low < self.high and self.lowest >= self.highest:
            raise ValueError("the range is narrower than 1/16 octave")

    @property
    def lowest(self) -> Tick:
        """The lowest LR."""
        return Tick.nearest(self.low)

    @property
    def highest(self) -> Tick:
        """The highest LR."""
        return Tick.nearest(self.high)

    def sweep(self) -> tuple[Tick, ...]:
        """The learning rates of the coarse sweep, ascending; the highest LR is always among them."""
        spaced = range(self.lowest, self.highest + 1, round(self.octaves_apart * SIXTEENTH))
        return tuple(Tick(tick) for tick in sorted({*spaced, self.highest}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Criterion:
    """When a run counts as failed; see ``trimtab.study.labels``.

    Attributes:
        margin: a final loss that exceeds the best loss by more counts as degraded ("d"), in nats.
        explosion_margin: a final loss that exceeds ln V by more counts as exploded, in nats.
        explosion_norm_ratio: a norm of the weight matrices that exceeds its initial value by a larger factor counts as
            exploded.
        stuck_share: a run has collapsed if its final loss has fallen from the unigram entropy by less than this share
            of the distance to the best loss of the reference arm.
        collapse_margin: a run has also collapsed if its final loss exceeds the best loss of the reference arm by more,
            in nats.
        spike_margin: a training loss that exceeds its trailing median by more counts as a spike, in nats.

    Raises:
        ValueError: if a number is not positive, or stuck_share is not below 1.
    """

    margin: float = 0.2
    explosion_margin: float = 0.1
    explosion_norm_ratio: float = 100.0
    stuck_share: float = 0.2
    spike_margin: float = 0.1
    collapse_margin: float = 1.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.stuck_share >= 1:
            raise ValueError(f"stuck_share must be below 1, got {self.stuck_share}")
