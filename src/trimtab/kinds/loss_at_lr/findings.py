"""The findings of a comparison of losses, as plain data."""

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
    """Return the losses of all blocks of a held-out part; by default of all parts, in the order of their names."""
    return list(blocks[text]) if text else [loss for name in sorted(blocks) for loss in blocks[name]]


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run of the study.

    Attributes:
        blocks: final loss by held-out part and block, in nats.
        explosion_margin: a final loss higher than a uniform guess by more than this counts as broken, in nats.
    """

    trial: Trial
    run_id: str
    outcome: Outcome | None
    blocks: Blocks
    explosion_margin: float

    @property
    def sound(self) -> bool:
        """Whether the run reached its last step with finite losses, not far above the loss of a uniform guess."""
        if self.outcome is None or self.outcome.stopped is not None or not self.blocks:
            return False
        if not self.outcome.final_loss <= self.outcome.log_vocab + self.explosion_margin:
            return False
        return all(math.isfinite(loss) for losses in self.blocks.values() for loss in losses)

    @property
    def loss(self) -> float:
        """Mean final loss over all blocks, in nats per token; nan if the run is not sound."""
        return float(np.mean(row_of(self.blocks))) if self.sound else math.nan


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds with its 95 % Student interval. Values are nan if there are too few seeds."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Saving:
    """The share of the reference's tokens and compute that an arm saves when it reaches the loss of the reference.

    Attributes:
        reached: number of seeds in which the arm reaches the final loss of the reference.
        seeds: number of seeds in which both runs are sound.
        tokens: share of tokens saved, over the seeds that reach the loss; negative if the arm needs more tokens.
        compute: share of FLOPs saved, over the same seeds.
    """

    reached: int
    seeds: int
    tokens: Mean
    compute: Mean


@dataclass(frozen=True, slots=True)
class Compared:
    """An arm of a size at a learning rate.

    Attributes:
        place: line and size of the arm.
        multiple: the learning rate as a multiple of the base rate.
        bracketed: whether rates below and above the base rate were swept; None without a sweep.
        broken: number of runs that have an outcome and are not sound.
        missing: number of runs without outcome.
        loss: mean final loss over the sound runs, in nats per token.
        perplexity: exp of the mean loss.
        bits_per_byte: nan if the tokens are not text.
        by_text: mean final loss of each held-out part.
        difference: loss minus the loss of the reference, over the seeds in which both runs are sound; None for the
            reference, without such a seed, and with fewer than two blocks.
        difference_by_text: the difference on each held-out part.
        p_holm: p-value after Holm's correction over the arms of the same size and learning rate.
        saving: saved tokens and compute; None for the reference.
        curve: mean held-out loss of the sound runs, by step.
    """

    name: str
    place: Place
    multiple: float
    learning_rate: float
    bracketed: bool | None
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
    """The change of the difference to the reference with each doubling of depth, in nats; mean over seeds.

    Attributes:
        visible: smallest change that data of this variance detect with power 0.8; nan below two seeds.
    """

    line: str
    multiple: float
    mean: Mean
    visible: float


@dataclass(frozen=True, slots=True)
class Overall:
    """The difference to the reference, averaged over all sizes, in nats; mean over seeds that have every size.

    Attributes:
        visible: smallest difference that data of this variance detect with power 0.8; nan below two seeds.
    """

    line: str
    multiple: float
    mean: Mean
    visible: float


@dataclass(frozen=True, slots=True)
class LossFindings:
    """The findings of a comparison of losses, with the data they are computed from."""

    spec: LossStudySpec
    evidence: Evidence
    compared: Sequence[Compared]
    slopes: Sequence[Slope]
    overall: Sequence[Overall]
    costs: Mapping[str, ModelCost]
    runs: Sequence[ComparedRun]
    warnings: Sequence[str]
