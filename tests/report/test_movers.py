"""Who moved first: event time, band and growth on curves whose answer is known, and the page of a real small study."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.kinds.max_lr import KIND
from trimtab.kinds.max_lr.at_limit import AT_LIMIT, MOVED
from trimtab.kinds.max_lr.findings import LabelledRun, LimitFindings
from trimtab.kinds.max_lr.growth import growth_of
from trimtab.kinds.max_lr.mover_charts import mover_sections
from trimtab.kinds.max_lr.movers import _mover, event_step, keep, movements, results_of
from trimtab.kinds.max_lr.page import content
from trimtab.kinds.max_lr.series import FOLLOWED, Series
from trimtab.kinds.max_lr.spec import MoversConfig
from trimtab.study import Study
from trimtab.study.labels import Label
from trimtab.testing.simulated_study import batches, outcome, outcome_of

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


PROBED: dict[str, Any] = {
    "name": "movers",
    "arms": ["baseline"],
    "learning_rates": {"low": 2**-6, "high": 2**0, "octaves_apart": 3},
    "config": {"width": 16, "num_layers": 2, "num_heads": 2, "context": 16, "tied": False},
    "data": {"zipf_markov": {"vocab_size": 32, "num_tokens": 20000}},
    "training": {"steps": 60, "batch_size": 8},
    "schedule": {"warmup_steps": 5},
    "probes": {"preset": "standard", "every": 5},
    "search": {"most_runs": 6, "replicates": 1, "extensions": 0},
}


def with_labels(findings: LimitFindings, label_of: Callable[[LabelledRun], Label]) -> LimitFindings:
    """The same runs with other labels, so that a tiny study has failing and sound runs where a test wants them."""
    return replace(findings, runs=[replace(run, label=label_of(run)) for run in findings.runs])


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> LimitFindings:
    findings = Study(**PROBED).run(tmp_path_factory.mktemp("movers") / "study")
    assert isinstance(findings, LimitFindings)
    return findings


def at_two_seeds(run: LabelledRun) -> Label:
    return Label.STUCK if run.trial.seed == 1 else Label.STABLE


def test_movers_compare_runs_of_the_same_rate(probed: LimitFindings) -> None:
    found = movements(with_labels(probed, at_two_seeds)).by_arm["baseline"]
    assert found.same_rate
    assert {run.trial.tick for run in (*found.sound, *found.failing)} == {found.failing[0].trial.tick}
    assert [mover.step for mover in found.movers if mover.step is not None] == sorted(
        mover.step for mover in found.movers if mover.step is not None
    )
    assert {mover.quantity for mover in found.movers} == set(FOLLOWED)
    assert {growth.quantity for growth in found.growth} <= set(FOLLOWED)


def test_runs_that_differ_in_their_rate_are_refused_unless_told_and_then_named(probed: LimitFindings) -> None:
    """The planted confound: the failing runs are those of the highest rate."""
    highest = max(run.trial.tick for run in probed.runs)
    confounded = with_labels(probed, lambda run: Label.STUCK if run.trial.tick == highest else Label.STABLE)
    found = movements(confounded)
    assert found.by_arm == {}
    assert found.refused == ["baseline"]
    page = content(confounded)
    assert any("no comparison for baseline" in line for section in page.sections for line in section.lines)
    told = replace(confounded, spec=replace(confounded.spec, movers=MoversConfig(other_rates=True)))
    movement = movements(told).by_arm["baseline"]
    assert not movement.same_rate
    notes = [section.note for section in mover_sections(0, "baseline", movement)]
    assert all("Part of every difference is due to the learning rate" in note for note in notes)


def test_what_is_kept_gives_the_movers_again_without_run_folders(probed: LimitFindings, tmp_path: Path) -> None:
    labelled = with_labels(probed, at_two_seeds)
    keep(labelled, tmp_path)
    stored = replace(labelled, evidence=replace(labelled.evidence, folder=tmp_path))
    before, after = (movements(findings).by_arm["baseline"] for findings in (labelled, stored))
    assert results_of(before) == results_of(after)
    assert movements(replace(labelled, evidence=replace(labelled.evidence, folder=tmp_path / "empty"))).by_arm == {}


def series(values: list[float], quantity: str = "proj_output/*/l2_norm") -> Series:
    steps = np.arange(0, 10 * len(values), 10)
    return Series(steps, {quantity: {"layer.0": np.array(values)}}, np.zeros(0))


def test_growth_of_curves_whose_ratio_and_slope_are_known() -> None:
    rng = np.random.default_rng(0)
    sound = [series([2 ** (0.01 * step + e) for step in range(0, 200, 10)]) for e in rng.normal(0, 0.05, 8)]
    fast = [series([2 ** (0.03 * step + e) for step in range(0, 200, 10)]) for e in rng.normal(0, 0.05, 8)]
    (found,) = growth_of(fast, sound, after=50)
    assert found.ratio == pytest.approx(2 ** (0.02 * 190), rel=0.1)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.ratio < found.high
    assert found.doubled == "yes"
    assert (found.slope, found.slope_sound) == (pytest.approx(3.0, abs=1e-6), pytest.approx(1.0, abs=1e-6))
    assert found.difference == pytest.approx(2.0, abs=1e-6)
    (same,) = growth_of(sound[:4], sound[4:], after=50)
    assert same.doubled == "no"
    (single,) = growth_of(fast[:1], sound, after=50)
    assert (single.low, single.p_double, single.doubled) == (None, None, "not clear")


def test_a_start_up_transient_is_no_growth() -> None:
    """The planted transient: the quantity rises during warm-up only."""
    rises = [series([1.0 + min(step, 50) / 10 + e for step in range(0, 200, 10)]) for e in (0.0, 0.01, 0.02)]
    flat = [series([6.0 + e for _ in range(0, 200, 10)]) for e in (0.0, 0.01, 0.02)]
    (found,) = growth_of(rises, flat, after=50)
    assert found.slope == pytest.approx(0.0, abs=1e-9)
    assert found.difference == pytest.approx(0.0, abs=1e-9)


def test_unseen_seeds_at_the_limit_move_once_if_they_fail_too_rarely_or_too_often(tmp_path: Path) -> None:
    tables = PROBED | {
        "probes": {"preset": "none"},
        "learning_rates": {"low": 2**-6, "high": 2**3},
        "search": {"most_runs": 16, "replicates": 1},
        "movers": {"seeds": 8, "above": 3},
    }
    spec = Study(**tables).spec
    made, results = batches(KIND, spec, outcome_of)
    at_limit = [trial for batch in made for trial in batch if trial.round == AT_LIMIT]
    rates = Counter(trial.tick for trial in at_limit)
    assert sorted(rates.values()) == [3, 8]
    lower, upper = sorted(rates)
    assert upper - lower == 16
    moved = [trial for batch in made for trial in batch if trial.round == MOVED]
    assert len(moved) in (0, 8)
    seen = {trial.seed for trial in results if trial.round < AT_LIMIT}
    assert seen.isdisjoint(trial.seed for trial in (*at_limit, *moved))
    always, _ = batches(
        KIND, spec, lambda spec, t: outcome(spec, t, 9.0) if t.round == AT_LIMIT else outcome_of(spec, t)
    )
    shifted = {trial.tick for batch in always for trial in batch if trial.round == MOVED}
    assert shifted == {lower - 4}, "all fail: a quarter octave down"


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
