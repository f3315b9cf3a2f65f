"""Who moved first: event time, band and growth on curves whose answer is known, and the page of a real small study."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from trimtab.kinds.max_lr.movers import _mover, event_step
from trimtab.kinds.max_lr.series import FOLLOWED
from trimtab.report import write_report
from trimtab.report.schema import schema
from trimtab.study import Study

STUDIES = Path(__file__).resolve().parents[2] / "studies"


def falling(n: int = 100) -> list[tuple[int, float]]:
    return [(step, 2 + 2 * math.exp(-step / 20)) for step in range(1, n + 1)]


def test_a_loss_that_leaves_for_good_has_its_event_where_it_leaves() -> None:
    curve = [(s, loss if s < 60 else 4.0) for s, loss in falling()]
    found = event_step(curve, margin=0.2)
    assert found is not None
    assert 60 <= found <= 63  # a mean of ten steps shows it a few steps late


def test_a_spike_that_returns_is_no_event() -> None:
    assert event_step([(s, loss if not 50 <= s < 60 else 9.0) for s, loss in falling()], margin=0.2) is None
    assert event_step(falling(), margin=0.2) is None


def test_a_loss_that_turns_into_nan_has_its_event_there() -> None:
    assert event_step([(s, loss if s < 80 else math.nan) for s, loss in falling()], margin=0.2) == 80


def test_a_quantity_leaves_at_the_first_of_three_readings_outside_the_band() -> None:
    calm = [[(step, 1.0) for step in range(0, 100, 10)], [(step, 3.0) for step in range(0, 100, 10)]]
    inside = [(step, 5.9) for step in range(0, 100, 10)]
    once = [(step, 7.0 if step == 30 else 2.0) for step in range(0, 100, 10)]
    later = [(step, 7.0 if step >= 50 or step == 20 else 2.0) for step in range(0, 100, 10)]
    low = [(step, 0.4 if step >= 70 else 2.0) for step in range(0, 100, 10)]
    found = [_mover("q", "layer.0", values, calm) for values in (inside, once, later, low)]
    assert [mover.step for mover in found] == [None, None, 50, 70]
    assert found[2].ratio == pytest.approx(3.5)


def test_a_negative_band_is_widened_and_not_narrowed() -> None:
    calm = [[(step, -4.0) for step in range(4)], [(step, -2.0) for step in range(4)]]
    assert _mover("q", "layer.0", [(step, -7.0) for step in range(4)], calm).step is None
    assert _mover("q", "layer.0", [(step, -9.0) for step in range(4)], calm).step == 0


@pytest.mark.slow
def test_the_report_of_a_study_with_probes_says_who_moved_first(tmp_path: Path) -> None:
    study = Study(
        name="movers",
        arms=["baseline"],
        learning_rates={"low": 2**-6, "high": 2**3, "octaves_apart": 3},
        config={"width": 16, "num_layers": 2, "num_heads": 2, "context": 16, "tied": False},
        training={"steps": 60, "batch_size": 8},
        schedule={"warmup_steps": 5},
        probes={"preset": "standard", "every": 5},
        search={"most_runs": 6, "replicates": 1},
    )
    findings = study.run(tmp_path / "study")
    results: dict[str, Any] = write_report(findings)
    jsonschema.validate(json.loads((tmp_path / "study" / "results.json").read_text()), schema("max_lr"))
    moved = results["movers"]["baseline"]
    assert moved["stable_lr"] < moved["broken_lr"]
    steps = [mover["step"] for mover in moved["movers"] if mover["step"] is not None]
    assert steps == sorted(steps)
    assert {mover["quantity"] for mover in moved["movers"]} == set(FOLLOWED)
    page = (tmp_path / "study" / "report.html").read_text()
    assert "<h2>Who moved first: baseline</h2>" in page
    assert page.count('data-for="movers-0-') == len(FOLLOWED)


COMMITTED = {p.name: p for p in sorted(STUDIES.iterdir()) if (p / "results.json").is_file()}


@pytest.mark.parametrize("folder", COMMITTED)
def test_no_committed_difference_stands_without_its_interval(folder: str) -> None:
    results = json.loads((COMMITTED[folder] / "results.json").read_text())
    if results.get("kind") == "loss_at_lr":
        assert len(results["study"]["verdicts"]) >= sum(one["difference"] is not None for one in results["compared"])
        for one in results["compared"]:
            found = one["difference"]
            if found is None:
                continue
            assert found["text_low"] < found["mean"] < found["text_high"], "no number without an interval"
            if results["study"]["comparison"]["seeds"] > 1:
                assert found["low"] < found["mean"] < found["high"]
                assert found["visible"] > 0, "no winner without the smallest visible effect"
