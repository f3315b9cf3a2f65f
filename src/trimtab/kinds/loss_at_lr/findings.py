"""What a comparison of losses found, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.kinds.loss_at_lr.spec import LossStudySpec
from trimtab.run.cost import ModelCost
from trimtab.run.folder import Outcome
from trimtab.stats.paired import PairedDifference
from trimtab.study.kind import Blocks, Evidence
from trimtab.study.sizes import Place
from trimtab.study.trial import Trial


def row_of(blocks: Blocks, text: str = "") -> list[float]:
    """The losses of all blocks of one held-out part, or of all parts in the order of their names."""
    return list(blocks[text]) if text else [loss for name in sorted(blocks) for loss in blocks[name]]


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run of the study.

    Attributes:
        blocks: final loss by held-out part and block, in nats.
        explosion_margin: a final loss above a uniform guess's by more than this says nothing of the arm, in nats.
    """

    trial: Trial
    run_id: str
    outcome: Outcome | None
    blocks: Blocks
    explosion_margin: float

    @property
    def sound(self) -> bool:
        """Whether it ran to its end with finite losses, no worse than a uniform guess."""
        if self.outcome is None or self.outcome.stopped is not None or not self.blocks:
            return False
        if not self.outcome.final_loss <= self.outcome.log_vocab + self.explosion_margin:
            return False
        return all(math.isfinite(loss) for some in self.blocks.values() for loss in some)

    @property
    def loss(self) -> float:
        """Mean final loss over all blocks, in nats per token; nan where it is not sound."""
        return float(np.mean(row_of(self.blocks))) if self.sound else math.nan


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds with its 95 % Student interval; nan where there are too few."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Saving:
    """Share of the reference's tokens and compute that an arm does without, until it reaches the reference's loss.

    Attributes:
        reached: seeds in which the loss is reached at all.
        tokens: share saved, over those seeds; below 0 where more are needed.
        compute: the same in FLOPs.
    """

    reached: int
    seeds: int
    tokens: Mean
    compute: Mean


@dataclass(frozen=True, slots=True)
class Compared:
    """One arm at one rate.

    Attributes:
        place: its line and size.
        multiple: of the base rate.
        broken: runs that exploded or were not finite.
        missing: runs without outcome.
        loss: mean final loss, nats per token, over the sound runs.
        perplexity: exp of it.
        bits_per_byte: nan where tokens are no text.
        by_text: mean final loss of each held-out part.
        difference: loss minus the reference's, over the seeds in which both are sound; None for the reference, and
            where fewer than one seed or two blocks are left.
        difference_by_text: the same for each held-out part.
        p_holm: Holm's p-value over the arms of the same size and rate.
        saving: of tokens and compute; None for the reference.
    """

    name: str
    place: Place
    multiple: float
    learning_rate: float
    broken: int
    missing: int
    loss: Mean
    perplexity: float
    bits_per_byte: float
    by_text: Mapping[str, float]
    difference: PairedDifference | None
    difference_by_text: Mapping[str, PairedDifference]
    p_holm: float | None
    saving: Saving | None
    curve: Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Slope:
    """How the difference to the reference changes with each doubling of depth, over seeds, in nats."""

    line: str
    multiple: float
    mean: Mean


@dataclass(frozen=True, slots=True)
class LossFindings:
    """A comparison of losses: what was found and all it rests on."""

    spec: LossStudySpec
    evidence: Evidence
    compared: Sequence[Compared]
    slopes: Sequence[Slope]
    costs: Mapping[str, ModelCost]
    runs: Sequence[ComparedRun]
    warnings: Sequence[str]
