"""What phase 1 of a search, the sweep and the replicates, determines: best losses, lines of failure, tested ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.stats.intervals import pooled_sd
from trimtab.stats.posterior import EdgeModel
from trimtab.study.bracket import bracketed, swept_by
from trimtab.study.edge import one_edge
from trimtab.study.labels import COLLAPSES, Edge, Yardstick, collapse_line, label, reference_never_learned
from trimtab.study.trial import Best, Results, Tick, best_of, finals_of, order_of

REPLICATE_REACH = 0.5  # nats above the best loss; a higher loss counts as a failure, not as seed noise
NEVER_LEARNED = 3.0  # margins below the unigram entropy that a best loss must reach for collapse to mean anything
PROBED: tuple[Edge, ...] = (Edge.QUALITY, Edge.COLLAPSE)


@dataclass(frozen=True, slots=True)
class PhaseOne:
    """The quantities that phase 1 determines; later rounds do not change them.

    Attributes:
        swept: rates of the sweep of each arm, with its extensions, ascending.
        seed_sd: standard deviation of the final loss between seeds at the same LR, pooled over arms, in nats; nan if
            not measured.
        error: standard error of the best loss of each arm, in nats; 0 if no rate has two runs.
        never_learned: arms whose bracketed best loss is less than three margins below the unigram entropy.
        unclear: for each edge, the arms whose failures do not form a single edge in LR.
    """

    best: Mapping[str, Best]
    swept: Mapping[str, tuple[Tick, ...]]
    reference_loss: float
    unigram_entropy: float
    seed_sd: float
    error: Mapping[str, float]
    reference: str
    never_learned: tuple[str, ...]
    unclear: Mapping[Edge, tuple[str, ...]]

    def yardstick(self, arm: str, *, usable: bool = False) -> Yardstick:
        """Return the losses with which the runs of an arm are compared."""
        best = self.best[arm]
        loss = self.reference_loss if usable else best.loss
        return Yardstick(loss if math.isfinite(loss) else math.inf, best.tick, self.reference_loss)

    @property
    def learned(self) -> bool:
        """Whether the best loss of the reference is below unigram entropy."""
        return not reference_never_learned(self.reference_loss, self.unigram_entropy)

    def bracketed(self, arm: str) -> bool:
        """Whether rates below and above the best rate of an arm were swept."""
        return math.isfinite(self.best[arm].loss) and bracketed(self.best[arm].tick, self.swept[arm])

    def error_of_best(self, arm: str) -> float:
        """Return the standard error of the best loss of an arm, in nats."""
        return self.error.get(arm, 0.0)

    def line(self, spec: MaxLrSpec) -> float:
        """Return the final loss above which a run has collapsed, in nats."""
        return collapse_line(self.unigram_entropy, self.reference_loss, spec.criterion)

    def has_edge(self, arm: str, edge: Edge) -> bool:
        """Whether an edge of an arm can be estimated."""
        lost = edge is Edge.COLLAPSE and arm in self.never_learned
        return self.learned and not lost and arm not in self.unclear.get(edge, ())


def phase_one(spec: MaxLrSpec, results: Results) -> PhaseOne:
    """Compute what the sweep and the replicates determine; runs of later rounds are ignored."""
    early = {trial: outcome for trial, outcome in results.items() if trial.round <= 1}
    best = {arm: best_of(arm, early) for arm in spec.arms}
    of_reference = (early[trial] for trial in sorted(early, key=order_of) if trial.arm == spec.reference)
    entropy = next((outcome.unigram_entropy for outcome in of_reference if outcome is not None), math.nan)
    phase = PhaseOne(
        best=best,
        swept={arm: _swept(spec, early, arm) for arm in spec.arms},
        reference_loss=best[spec.reference].loss,
        unigram_entropy=entropy,
        seed_sd=_seed_sd(early, best),
        error={},
        reference=spec.reference,
        never_learned=(),
        unclear={},
    )
    least = entropy - NEVER_LEARNED * spec.criterion.margin
    return replace(
        phase,
        error={arm: _error(arm, early, best[arm], phase.seed_sd) for arm in spec.arms},
        never_learned=tuple(arm for arm in spec.arms if phase.bracketed(arm) and best[arm].loss > least),
        unclear={
            edge: tuple(arm for arm in spec.arms if not _one_edge(spec, phase, early, arm, edge)) for edge in PROBED
        },
    )


def has_collapsed(spec: MaxLrSpec, phase: PhaseOne, results: Results, arm: str) -> bool:
    """Whether a run of the sweep of an arm has collapsed at the arm's best LR or above it."""
    yardstick = phase.yardstick(arm)
    labels = (
        label(outcome, trial.tick, yardstick, spec.criterion, spec.criterion.margin)
        for trial, outcome in results.items()
        if trial.arm == arm and trial.round == 0 and trial.tick >= yardstick.best_tick
    )
    return any(each in COLLAPSES for each in labels)


def edge_model(spec: MaxLrSpec, phase: PhaseOne) -> EdgeModel:
    """Return the statistical model of the edges of all arms, each in the range in which it was tested."""
    ranges = {arm: (swept[0].octave, swept[-1].octave) for arm, swept in phase.swept.items()}
    low = min(lowest for lowest, _ in ranges.values())
    high = max(highest for _, highest in ranges.values())
    return EdgeModel(low, high, ranges)


def _swept(spec: MaxLrSpec, results: Results, arm: str) -> tuple[Tick, ...]:
    swept = swept_by(arm, results)
    return swept if len(swept) > 1 else spec.rates_of(arm).sweep()  # one rate of an unfinished sweep is no range


def _one_edge(spec: MaxLrSpec, phase: PhaseOne, results: Results, arm: str, edge: Edge) -> bool:
    return one_edge(arm, results, phase.yardstick(arm), spec.criterion, edge)


def _error(arm: str, results: Results, best: Best, seed_sd: float) -> float:
    """Return the error of the best loss, from the runs at its rate or from those of all arms, whichever is larger."""
    losses = [loss for loss in finals_of(arm, results).get(best.tick, []) if math.isfinite(loss)]
    spreads = [sd for sd in (seed_sd, pooled_sd([losses])) if math.isfinite(sd)]
    return max(spreads) / math.sqrt(len(losses)) if spreads and losses else 0.0


def _seed_sd(results: Results, best: Mapping[str, Best]) -> float:
    groups = [
        [loss for loss in losses if loss <= best[arm].loss + REPLICATE_REACH]
        for arm in best
        for losses in finals_of(arm, results).values()
    ]
    return pooled_sd([group for group in groups if len(group) > 1])
