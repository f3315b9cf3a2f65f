"""The part of ``results.json`` of limits by size, and the ``results.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.kinds.max_lr.agreement import order_agreement
from trimtab.kinds.max_lr.results import LimitFacts, LimitResults
from trimtab.kinds.max_lr.results import facts_of as facts_of_one_size
from trimtab.kinds.max_lr.results import results_of as results_of_one_size
from trimtab.kinds.max_lr_by_size.analysis import SizedFindings, SizeTrend
from trimtab.section import Rows


@dataclass(frozen=True, slots=True)
class SizedFacts:
    """The facts that are merged into ``study``."""

    reference: str


@dataclass(frozen=True, slots=True)
class SizeResults:
    """The results of a size."""

    study: LimitFacts
    warnings: Sequence[str]
    limits: LimitResults


@dataclass(frozen=True, slots=True)
class SizedResults:
    """The results that are merged into the top level."""

    trends: Sequence[SizeTrend]
    sizes: Mapping[str, SizeResults]


def facts_of(findings: SizedFindings) -> SizedFacts:
    """Return the facts of the whole study."""
    return SizedFacts(findings.spec.reference)


def results_of(findings: SizedFindings) -> SizedResults:
    """Return the trends and the results of each size."""
    sizes = {
        size: SizeResults(
            study=facts_of_one_size(one),
            warnings=list(one.warnings),
            limits=results_of_one_size(one, order_agreement(one), {}),
        )
        for size, one in findings.by_size.items()
    }
    return SizedResults(findings.trends, sizes)


def rows_of(findings: SizedFindings) -> Rows:
    """Return one row per arm, measure and size."""
    columns = (
        "arm",
        "measure",
        "size",
        "width",
        "num_layers",
        "parameters",
        "estimate",
        "low",
        "high",
        "bound",
        "used",
    )
    rows = [
        [
            *(trend.line, trend.measure, point.size, point.width, point.num_layers, point.parameters),
            *(point.limit.estimate, point.limit.low, point.limit.high, point.limit.bound, point.used),
        ]
        for trend in findings.trends
        for point in trend.points
    ]
    return Rows(columns, rows)
