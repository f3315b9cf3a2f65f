"""The estimator's gate on 200 simulated studies a cell; ``benchmarks/estimator.py`` runs the same cells on more.

Tolerance for the error of the simulation itself, with fixed seeds: coverage is held to its bound as it stands (three
arms of 200 studies: a standard error of 0.009 at 0.95, so an honest 0.95 lies four of them above 0.91); bias and false
claims may exceed theirs by two standard errors.
"""

from __future__ import annotations

from typing import Any

import pytest
from benchmark import load

STUDIES = 200


estimator = load("estimator")


PROMISED = [cell for cell in estimator.GATE if not cell.enough]  # the early stop is left to the benchmark


def is_slow(cell: Any) -> bool:
    """Adaptive designs but the one closest to a study: lapses, and three widths of edge."""
    return cell.design == "adaptive" and not (cell.lapse and len(set(cell.widths)) > 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=pytest.mark.nightly if is_slow(cell) else (), id=cell.name) for cell in PROMISED],
)
def test_the_estimator_is_honest(cell: object) -> None:
    summary = estimator.simulate(cell, STUDIES)
    assert summary.failures(errors=2) == []


def test_a_dishonest_estimator_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = estimator.fit

    def shifted(pairs: list[list[tuple[float, bool]]]) -> object:
        return honest([[(x + 0.6, failed) for x, failed in own] for own in pairs])

    monkeypatch.setattr(estimator, "fit", shifted)
    found = estimator.simulate(estimator.GATE[0], 20).failures(errors=2)
    assert any("coverage" in one for one in found)
    assert any("bias" in one for one in found)


def test_the_same_seeds_give_the_same_summary() -> None:
    cell = estimator.GATE[-1]
    assert estimator.simulate(cell, 2) == estimator.simulate(cell, 2)


def test_the_gate_holds_the_cells_that_were_promised() -> None:
    seen = {(cell.design, cell.runs, cell.lapse, len(set(cell.widths)) == 1) for cell in PROMISED}
    assert seen == {
        (design, runs, lapse, equal)
        for design, runs in (("grid", 3), ("grid", 5), ("adaptive", 40))
        for lapse in (0.0, 0.03)
        for equal in (True, False)
    }
