"""The gate of the whole pipeline on 200 simulated studies a cell; ``benchmarks/pipeline.py`` runs the cells on 1,000.

A simulated study has losses. Everything else is the library's own: sweep, extension, best, labels, probes, intervals.
The coverage of the 95 % intervals is held to 0.91 for each arm and edge, less two standard errors of the simulation.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from benchmark import ROOT, load

SOURCE = ROOT / "studies" / "2026-11-26_collapse"
STUDIES = 200
LEAST = 0.91
MOST_RUNS = 25


pipeline = load("pipeline")
HARDEST = ("emulator",)  # losses drawn from a committed study; the other cells are simulated every night
HONEST = [cell for cell in pipeline.CELLS if cell != "island"]


def too_low(studies: Any) -> list[str]:
    """The arms and edges whose coverage is below the bound."""
    facts = [fact for found, _ in studies for fact in found]
    lines: list[str] = []
    for arm, edge in sorted({(fact.arm, fact.edge) for fact in facts}):
        printed = [f for f in facts if (f.arm, f.edge) == (arm, edge) and f.printed in (None, "above", "below")]
        covered = sum(fact.first for fact in printed) / max(1, len(printed))
        if covered < LEAST - 2 * math.sqrt(LEAST * (1 - LEAST) / max(1, len(printed))):
            lines.append(f"{arm}, {edge}: {covered:.3f} of {len(printed)}")
    return lines


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", [pytest.param(cell, marks=() if cell in HARDEST else pytest.mark.nightly) for cell in [*HONEST, "emulator"]]
)
def test_the_intervals_of_each_arm_are_honest_through_the_whole_pipeline(cell: str) -> None:
    studies = pipeline.simulate(cell, STUDIES, MOST_RUNS, SOURCE, None)
    assert too_low(studies) == []


@pytest.mark.nightly
@pytest.mark.parametrize("cell", [*HONEST, "emulator"])
def test_intervals_from_losses_are_honest_too(cell: str) -> None:
    """With a sweep of every second rate, and limits of collapse from losses."""
    studies = pipeline.simulate(cell, STUDIES, MOST_RUNS, SOURCE, None, "both")
    assert too_low(studies) == []


def test_an_interval_that_is_too_narrow_would_be_caught() -> None:
    """The same studies, with every limit moved by half an octave."""
    studies = pipeline.simulate("logistic", 20, MOST_RUNS, None, None)
    moved = [([_moved(fact) for fact in found], claims) for found, claims in studies]
    assert too_low(moved) != []


def _moved(fact: Any) -> Any:
    inside = abs(fact.error + 0.5) < fact.width / 4
    return type(fact)(fact.arm, fact.edge, None, inside, inside, fact.width, fact.error, fact.pooled, fact.runs)


def test_the_same_seeds_give_the_same_studies() -> None:
    assert pipeline.simulate("slopes", 2, MOST_RUNS, None, None) == pipeline.simulate(
        "slopes", 2, MOST_RUNS, None, None
    )


@pytest.mark.slow
def test_the_conclusion_of_the_demo_is_the_same_in_nineteen_of_twenty_repeats() -> None:
    """The set of arms claimed above the reference, at both edges; losses are drawn from those of a committed study."""
    repeats = pipeline.simulate("demo", 100, 20, SOURCE, None)
    conclusions = [{edge: frozenset(arms) for edge, arms in claims.items()} for _, claims in repeats]
    normed = frozenset({"qk_norm", "qkv_norm", "qk_norm_cap"})
    assert sum(one == {"quality": normed, "collapse": normed} for one in conclusions) >= 95
