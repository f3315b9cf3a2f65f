"""Limits and comparisons of all arms under one criterion: a margin above the best loss, or a line of collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from trimtab.kinds.max_lr.findings import CriterionFindings, CriterionName, Pair
from trimtab.kinds.max_lr.fits import fit_edge
from trimtab.kinds.max_lr.phase import PhaseOne
from trimtab.kinds.max_lr.ratios import limit_of, ratio_of, told_apart
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.stats.comparison import difference, holm, probability_above, smallest_visible_shift
from trimtab.stats.posterior import EdgeEvidence, EdgeModel, EdgePosterior
from trimtab.study.edge import edge_trials, one_edge
from trimtab.study.labels import Edge, Yardstick
from trimtab.study.settings import Criterion
from trimtab.study.trial import Results


@dataclass(frozen=True, slots=True)
class Rule:
    """How a criterion of the report differs from the one that the study states.

    Attributes:
        margin: multiple of the margin.
        at_entropy: whether the line of collapse is the unigram entropy, unless it is ``collapse_margin`` above L*.
    """

    edge: Edge
    margin: float = 1.0
    at_entropy: bool = False


RULES: Mapping[CriterionName, Rule] = {
    "half_d": Rule(Edge.QUALITY, 0.5),
    "d": Rule(Edge.QUALITY),
    "double_d": Rule(Edge.QUALITY, 2.0),
    "collapse": Rule(Edge.COLLAPSE),
    "collapse_at_entropy": Rule(Edge.COLLAPSE, at_entropy=True),
    "strict": Rule(Edge.STRICT),
}
AT_ENTROPY = 1e-9  # share of the way down from the unigram entropy; a criterion must have a positive share


@dataclass(frozen=True)
class Limits:
    """The results of all arms under one criterion.

    Attributes:
        breaks: only of arms that have this edge.
    """

    rule: Rule
    breaks: Mapping[str, EdgePosterior]
    trials: Mapping[str, EdgeEvidence]
    findings: Mapping[str, CriterionFindings]


def limits_of(spec: MaxLrSpec, phase: PhaseOne, results: Results, model: EdgeModel, rule: Rule) -> Limits:
    """Return the limits of all arms, with their ratios to the reference."""
    criterion = replace(spec.criterion, stuck_share=AT_ENTROPY) if rule.at_entropy else spec.criterion
    margin = spec.criterion.margin * rule.margin
    quality = rule.edge is Edge.QUALITY

    def evidence(arm: str, yardstick: Yardstick) -> EdgeEvidence:
        if not phase.learned:
            return EdgeEvidence.of([])
        return edge_trials(arm, results, yardstick, criterion, rule.edge, margin, graded=spec.search.graded)

    trials = {arm: evidence(arm, phase.yardstick(arm)) for arm in spec.arms}
    usable_trials = {arm: evidence(arm, phase.yardstick(arm, usable=True)) for arm in spec.arms} if quality else trials
    clear = [arm for arm in spec.arms if _is_clear(spec, phase, results, arm, rule, criterion)]
    breaks = fit_edge(model, phase, clear, rule.edge, evidence)
    usable = fit_edge(model, phase, clear, rule.edge, evidence, usable=True) if quality else breaks
    reference = spec.reference
    p_values = {
        arm: difference(breaks[arm], breaks[reference]).p_value
        for arm in breaks
        if arm != reference
        and reference in breaks
        and spec.comparable(arm)
        and len(trials[arm].x)
        and len(trials[reference].x)
    }
    adjusted = holm(p_values)
    lost = phase.never_learned if rule.edge is Edge.COLLAPSE else ()
    findings = {
        arm: CriterionFindings(
            breaks=limit_of(breaks.get(arm), trials[arm], "never_learned" if arm in lost else "no_single_edge"),
            usable=limit_of(usable.get(arm), usable_trials[arm], "never_learned" if arm in lost else "no_single_edge"),
            ratio=ratio_of(arm, reference, breaks, trials, spec.comparable(arm)),
            p_value=p_values.get(arm),
            p_holm=adjusted.get(arm),
        )
        for arm in spec.arms
    }
    return Limits(rule, breaks, trials, findings)


def pairs_of(spec: MaxLrSpec, limits: Limits) -> list[Pair]:
    """Compare all arms that have a limit and the optimizer of the reference, two by two."""
    known = [arm for arm in limits.breaks if spec.comparable(arm) and len(limits.trials[arm].x)]
    pairs = [(arm, other) for index, arm in enumerate(known) for other in known[index + 1 :]]
    above = {pair: probability_above(limits.breaks[pair[0]], limits.breaks[pair[1]]) for pair in pairs}
    p_values = {
        " / ".join(pair): min(1.0, 2 * min(p, 1 - p)) if told_apart(*pair, limits.breaks, limits.trials) else 1.0
        for pair, p in above.items()
    }
    adjusted = holm(p_values)
    return [
        Pair(
            *pair,
            ratio=ratio_of(*pair, limits.breaks, limits.trials, comparable=True).lr50,
            visible_shift=smallest_visible_shift(limits.breaks[pair[0]], limits.breaks[pair[1]]),
            probability=probability,
            p_holm=adjusted[" / ".join(pair)],
        )
        for pair, probability in above.items()
    ]


def order_by_limit(limits: Limits) -> list[str]:
    """Return the arms that have a limit, by the median of LR50."""

    def median(arm: str) -> float:
        value = float(limits.breaks[arm].quantiles((0.5,))[0])
        return value if math.isfinite(value) else math.inf

    return sorted(limits.breaks, key=lambda arm: (median(arm), arm))


def _is_clear(spec: MaxLrSpec, phase: PhaseOne, results: Results, arm: str, rule: Rule, criterion: Criterion) -> bool:
    if not phase.learned or rule.edge is Edge.STRICT:
        return True
    if rule.edge is Edge.COLLAPSE and arm in phase.never_learned:
        return False
    margin = spec.criterion.margin * rule.margin
    return one_edge(arm, results, phase.yardstick(arm), criterion, rule.edge, margin)
