"""Posteriors of an edge of all arms. At the edge of quality they include the uncertainty of each arm's best loss.

A run fails at the edge of quality if its loss exceeds the best loss of the arm by a margin, and the best loss is the
mean of a few runs. On a slope an error of the best loss moves the limit, and no number of probes averages it out. The
posterior is therefore a mixture over three values of the best loss, the nodes and weights of Gauss-Hermite quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from trimtab.kinds.max_lr.phase import PhaseOne
from trimtab.stats.posterior import EdgeEvidence, EdgeModel, EdgePosterior
from trimtab.study.labels import Edge, Yardstick

NODES = ((-math.sqrt(3.0), 1 / 6), (0.0, 2 / 3), (math.sqrt(3.0), 1 / 6))  # in standard errors


def fit_edge(
    model: EdgeModel,
    phase: PhaseOne,
    arms: Collection[str],
    edge: Edge,
    evidence: Callable[[str, Yardstick], EdgeEvidence],
    *,
    usable: bool = False,
) -> dict[str, EdgePosterior]:
    """Return the posterior of every arm.

    Args:
        model: the statistical model of the edges.
        phase: what the sweep and the replicates determined.
        arms: the arms that have this edge.
        edge: which of the edges.
        evidence: the labelled runs of an arm for a yardstick.
        usable: whether runs are compared with the best loss of the reference.
    """
    if edge is not Edge.QUALITY:
        return model.fit({arm: evidence(arm, phase.yardstick(arm, usable=usable)) for arm in arms})
    fits: list[tuple[float, Mapping[str, EdgePosterior]]] = []
    for node, weight in NODES:
        shifted = {arm: _shifted(phase, arm, node, usable=usable) for arm in arms}
        fits.append((weight, model.fit({arm: evidence(arm, yardstick) for arm, yardstick in shifted.items()})))
    return {arm: _mixture([(weight, fit[arm]) for weight, fit in fits]) for arm in arms}


def _shifted(phase: PhaseOne, arm: str, node: float, *, usable: bool) -> Yardstick:
    yardstick = phase.yardstick(arm, usable=usable)
    error = phase.error_of_best(phase.reference if usable else arm)
    return replace(yardstick, best_loss=yardstick.best_loss + node * error)


def _mixture(parts: list[tuple[float, EdgePosterior]]) -> EdgePosterior:
    weight = sum((share * part.weight for share, part in parts[1:]), parts[0][0] * parts[0][1].weight)
    return replace(parts[1][1], weight=weight)
