"""Fit a trend to the limits at each size, and extrapolate it to a model with ten times the parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from trimtab.kinds.max_lr.analysis import analyse as analyse_one_size
from trimtab.kinds.max_lr.analysis import limit_draws
from trimtab.kinds.max_lr.findings import MAIN, ArmFindings, Estimate, LabelledRun, LimitFindings
from trimtab.kinds.max_lr_by_size.spec import SizedStudySpec
from trimtab.stats.trend import linear_trend
from trimtab.study.kind import Evidence

Measure = Literal["quality", "collapse", "lr_sensitivity"]
MEASURES: tuple[Measure, ...] = ("quality", "collapse", "lr_sensitivity")
DRAWS = 4000
NORMAL = 1.96  # half of a 95 % interval, in standard deviations
LARGER = 10.0


@dataclass(frozen=True, slots=True)
class SizePoint:
    """The limit of a line at a size, or its LR sensitivity in nats.

    Attributes:
        parameters: number of parameters of the blocks, without embedding and head.
        used: whether the trend uses the limit; it does not use bounds.
    """

    arm: str
    size: str
    width: int
    num_layers: int
    parameters: int
    limit: Estimate
    used: bool


@dataclass(frozen=True, slots=True)
class SizeTrend:
    """The trend of a limit of a line with size, or of its LR sensitivity. A value is None if too few sizes have one.

    Attributes:
        measure: LR50 at one of the two edges, on a scale of octaves, or the LR sensitivity, in nats.
        per_doubling: change for each doubling of the parameters of the blocks, in octaves or nats: low, median, high.
        per_width, per_depth: change for each doubling of width at fixed depth, and of depth at fixed width.
        predicted: extrapolated to a model with ten times the parameters of the largest: low, median, high.
    """

    line: str
    measure: Measure
    points: Sequence[SizePoint]
    per_doubling: tuple[float, float, float] | None
    per_width: tuple[float, float, float] | None
    per_depth: tuple[float, float, float] | None
    predicted_parameters: float
    predicted: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class SizedFindings:
    """The findings of a study of limits by size."""

    spec: SizedStudySpec
    evidence: Evidence
    by_size: Mapping[str, LimitFindings]
    trends: Sequence[SizeTrend]
    runs: Sequence[LabelledRun]
    warnings: Sequence[str]


def analyse(spec: SizedStudySpec, evidence: Evidence) -> SizedFindings:
    """Analyse each size, then fit the trend over sizes."""
    by_size: dict[str, LimitFindings] = {}
    for size, study in spec.studies.items():
        results = {t: outcome for t, outcome in evidence.results.items() if spec.places[t.arm].size == size}
        by_size[size] = analyse_one_size(study, replace(evidence, results=results))
    return SizedFindings(
        spec=spec,
        evidence=evidence,
        by_size=by_size,
        trends=[_trend(spec, line, measure, by_size, evidence) for measure in MEASURES for line in spec.lines],
        runs=[run for findings in by_size.values() for run in findings.runs],
        warnings=[f"{size}: {warning}" for size, findings in by_size.items() for warning in findings.warnings],
    )


def _trend(
    spec: SizedStudySpec, line: str, measure: Measure, by_size: Mapping[str, LimitFindings], evidence: Evidence
) -> SizeTrend:
    points: list[SizePoint] = []
    draws: list[np.ndarray] = []
    rng = np.random.default_rng(0)
    for name, place in spec.places.items():
        if place.line != line:
            continue
        findings = by_size[place.size]
        arm = findings.arms[name]
        model = spec.arms[name].protocol.model
        limit, drawn = _measured(arm, measure, rng)
        parameters = evidence.cost(name).of_blocks
        usable = drawn is not None
        points.append(SizePoint(name, place.size, model.width, model.num_layers, parameters, limit, usable))
        if drawn is not None:
            draws.append(drawn)
    used = [point for point in points if point.used]
    largest = max(point.parameters for point in points)
    doublings = np.log2([point.parameters for point in used])
    both = np.array([[1.0, np.log2(point.width), np.log2(point.num_layers)] for point in used]).reshape(-1, 3)
    asked = np.array([[1.0, np.log2(LARGER * largest)]])
    single = _fit(np.stack([np.ones(len(used)), doublings], 1) if used else np.zeros((0, 2)), draws, asked)
    double = _fit(both, draws, np.zeros((0, 3)))
    return SizeTrend(
        line=line,
        measure=measure,
        points=points,
        per_doubling=single[0][1] if single else None,
        per_width=double[0][1] if double else None,
        per_depth=double[0][2] if double else None,
        predicted_parameters=LARGER * largest,
        predicted=None if single is None else single[1][0] if measure == "lr_sensitivity" else _power(single[1][0]),
    )


def _measured(arm: ArmFindings, measure: Measure, rng: np.random.Generator) -> tuple[Estimate, np.ndarray | None]:
    """Return a measure of an arm and draws from its posterior; no draws of a bound or without an interval."""
    if measure == "lr_sensitivity":
        value = arm.lr_sensitivity
        known = math.isfinite(value.high)
        ends = (value.low, value.high) if known else (None, None)
        error = (value.high - value.low) / (2 * NORMAL) if known else 0.0
        estimate = Estimate(value.estimate if math.isfinite(value.estimate) else None, *ends)
        return estimate, rng.normal(value.estimate, error, DRAWS) if known else None
    limit = arm.criteria[MAIN[measure]].breaks.lr50
    usable = limit.bound is None and bool(arm.edges[measure].posterior.log2_lr50)
    return limit, limit_draws(arm, measure, DRAWS, rng) if usable else None


Triple = tuple[float, float, float]


def _fit(design: np.ndarray, draws: Sequence[np.ndarray], at: np.ndarray) -> tuple[list[Triple], list[Triple]] | None:
    try:
        trend = linear_trend(design, np.stack(draws, 1) if draws else np.zeros((0, 0)), at)
    except ValueError:
        return None  # too few sizes have a limit, or the sizes do not differ
    coefficients: list[Triple] = [tuple(map(float, row)) for row in trend.coefficients]  # pyright: ignore[reportAssignmentType]
    predictions: list[Triple] = [tuple(map(float, row)) for row in trend.predictions]  # pyright: ignore[reportAssignmentType]
    return coefficients, predictions


def _power(log2: Triple) -> Triple:
    low, middle, high = log2
    return 2.0**low, 2.0**middle, 2.0**high
