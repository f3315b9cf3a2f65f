"""Pages of studies of signals and of seeds that never trained: what they say, and names that try to be more."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import plotly.graph_objects as go
import pytest
from rich.console import Console

from trimtab.kinds.signals import analysis as signals_analysis
from trimtab.kinds.signals.analysis import TRACES
from trimtab.kinds.signals.traces import BIN_EDGES, GROUPS, Trace, save_traces
from trimtab.report import print_findings, write_report
from trimtab.report.html import resource
from trimtab.report.schema import schema
from trimtab.run.folder import Outcome
from trimtab.stats import training_map
from trimtab.stats.training_map import MapUnavailableError
from trimtab.study.kind import Evidence, Findings, kind_of, read_any_study
from trimtab.study.seed_facts import NO_FACTS, SeedFacts, save_facts
from trimtab.study.seed_groups import FACTS, seed_groups
from trimtab.study.stored import cost_reader
from trimtab.study.trial import Trial

HOSTILE = ("<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "=1+1 [bold]x[/bold]", "{{ 7 * 7 }}")
PLAIN = ("baseline", "qk_norm", "soft_cap", "layer_scale")
STATISTICS = tuple(f"all_weights/model/{name}" for name in ("l1", "l2", "spectral_norm", "singular_variance"))
STEPS = np.arange(10, 210, 10)
OUTLIER = 3  # seed (of the initial weights) of the run that ends far off and leaves the map


def outcome_of(final: float, *, stopped: Any = None) -> Outcome:
    return Outcome(
        run_id="",
        stopped=stopped,
        steps=200,
        initial_loss=math.log(256),
        final_loss=final,
        norm_ratio=1.0,
        spike=0.0,
        log_vocab=math.log(256),
        unigram_entropy=3.1,
        bytes_per_token=1.0,
        held_out=((0, math.log(256)), (100, (final + 5) / 2), (200, final)),
        seconds=0.5,
    )


def fails(trial: Trial, arm: int) -> bool:
    """The edge lies higher for each further arm, and a little lower for odd seeds."""
    return trial.tick.octave > -6 + arm - 0.5 * (trial.seed % 2)


def trace_of(trial: Trial, arm: int) -> Trace:
    rng = np.random.default_rng((trial.seed, arm, trial.tick + 1000))
    tells = 3.0 if fails(trial, arm) else 1.0
    noise = np.exp(0.3 * rng.standard_normal(len(STEPS)))
    histogram = np.zeros((len(STEPS), len(GROUPS), len(BIN_EDGES) - 1))
    histogram[:, :2, 20:24] = 0.25
    signals = dict.fromkeys(("tev_mean", "tev_std", "tev_over_norm", "tev_over_init", "tev_frequent"), 0.1 * noise)
    signals |= {"tev_rare": 0.1 * noise, "variance": noise**2, "variance_embedding": 0.2 * noise, "grad_norm": noise}
    signals |= {"loss": tells * noise, "variance_layer_0": 0.1 * noise, "variance_layer_1": 0.05 * noise}
    return Trace(STEPS, signals, histogram, {"step": 0.01, "tables": 0.0001, "noise": 0.001})


def facts_of(trial: Trial) -> SeedFacts:
    rng = np.random.default_rng((trial.seed, trial.data_seed or 0))
    phase = np.digitize(np.arange(20), [6, 13])
    if trial.seed == OUTLIER:
        phase[9:] = 3
    centres = np.array([[0.0] * 4, [5.0] * 4, [10.0] * 4, [5.0, -5.0, 5.0, -5.0]])
    table = centres[phase] + 0.2 * rng.standard_normal((20, 4))
    return SeedFacts(rng.integers(0, 5, 300), STEPS, STATISTICS, table, (0.0, 1.0, 20.0))


def table_of(kind: str, arms: tuple[str, ...]) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "kind": kind,
        "name": HOSTILE[1] if arms == HOSTILE else "a study",
        "model": {"width": 16, "num_layers": 2, "num_heads": 2, "context": 8},
        "training": {"steps": 200, "batch_size": 4, "accumulate": 2},
        "schedule": {"warmup_steps": 2},
        "probes": {"named": ["tev", "variance", "training_map"], "every": 10},
        "arms": {arm: {"method": method} for arm, method in zip(arms, PLAIN, strict=True)},
    }
    if kind == "signals":
        raw |= {"learning_rates": {"low": "2^-7", "high": "2^-4", "octaves_apart": 1}, "signals": {"seeds": 5}}
    else:
        raw |= {"seeds": {"learning_rate": "2^-5", "init": 5, "data": 2}}
    return raw


@pytest.fixture(scope="module", autouse=True)
def _quick_maps() -> Iterator[None]:
    """A page shows a map whatever number of starts it was chosen from; fits have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_map, "STARTS", 1)
        patch.setattr(training_map, "ITERATIONS", 15)
        yield


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def made(kind: str, arms: tuple[str, ...] = PLAIN, *, lost: bool = False) -> Findings:
        folder = tmp_path_factory.mktemp("findings")
        spec: Any = read_any_study(table_of(kind, arms), "test")
        trials = next(kind_of(spec).rounds(spec))
        names = {trial: f"{index:020d}" for index, trial in enumerate(trials)}
        number = {arm: index for index, arm in enumerate(spec.arms)}
        results: dict[Trial, Outcome | None] = {}
        for trial in trials:
            final = 2.0 + 0.01 * math.sin(7 * trial.seed + 3 * (trial.data_seed or 0))
            if kind == "signals" and fails(trial, number[trial.arm]):
                final = 3.05
            if kind == "seeds" and (trial.seed, trial.data_seed) == (OUTLIER, 1):
                final = 2.4
            results[trial] = None if lost else outcome_of(final)
        save_traces({names[t]: trace_of(t, number[t.arm]) for t in trials}, folder / TRACES)
        save_facts({names[trial]: facts_of(trial) for trial in trials}, folder / FACTS)
        errors = {names[trial]: "RuntimeError: <b>lost</b>" for trial in trials if lost}
        evidence = Evidence(
            results=results,
            run_ids=names,
            folder=folder,
            errors=errors,
            blocks=lambda name: {},
            cost=cost_reader(spec, {}),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(signals_analysis, "CURVE", (0.5, 1.0))  # each point takes seconds
            return kind_of(spec).analyse(spec, evidence)

    return made


def written(findings: Findings) -> tuple[str, dict[str, Any], str]:
    """Page without plotly, JSON and CSV."""
    write_report(findings)
    folder: Path = findings.evidence.folder
    page = (folder / "report.html").read_text(encoding="utf-8").replace(resource("vendor/plotly-basic.min.js"), "")
    return page, json.loads((folder / "results.json").read_text()), (folder / "results.csv").read_text()


EVERY = pytest.mark.parametrize(
    ("kind", "lost"), [("signals", False), ("signals", True), ("seeds", False), ("seeds", True)]
)


@EVERY
def test_every_chart_is_a_plotly_figure_with_a_place_of_its_own(make: Any, kind: str, lost: bool) -> None:
    page, _, _ = written(make(kind, HOSTILE, lost=lost))
    homes = re.findall(r'class="chart" id="([^"]+)"', page)
    charts = dict(re.findall(r'class="chart-data" data-for="([^"]+)">(.*?)</script>', page, re.DOTALL))
    assert set(homes) == set(charts)
    assert len(homes) == len(set(homes))
    for slug, text in charts.items():
        assert not set("<>&") & set(text), slug
        chart = json.loads(text)
        go.Figure(data=chart["data"], layout=chart["layout"])
        for trace in chart["data"]:
            assert len(trace["x"]) == len(trace["y"]), slug
    if not lost:
        kinds = {slug.rsplit("-", 1)[0] for slug in charts}
        of_seeds = {"seeds-curves", "seeds-map"}
        wanted = {"prediction", "scatter", "ridgeline", "layers"} if kind == "signals" else {"seeds-variance"}
        assert kinds == wanted | of_seeds


@EVERY
def test_a_name_is_text_and_nothing_else(make: Any, kind: str, lost: bool) -> None:
    page, results, rows = written(make(kind, HOSTILE, lost=lost))
    for name in HOSTILE[:2]:
        assert name not in page
    assert escape(HOSTILE[0]) in page
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", page)
    assert results["kind"] == kind
    jsonschema.validate(results, schema(kind))
    assert not any(line.startswith(("=", "+", "-", "@")) for line in rows.splitlines())
    assert ",=1+1" not in rows
    console = Console(file=io.StringIO(), width=200)
    print_findings(make(kind, HOSTILE, lost=lost), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("[bold]x[/bold]" in shown) == (not lost)


def test_the_groups_of_a_study_of_seeds_are_computed_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = make("seeds")

    def again(*_: object) -> None:
        raise AssertionError("computed a second time")

    monkeypatch.setattr("trimtab.study.kind.seed_groups", again)
    _, results, _ = written(findings)
    assert [group["arm"] for group in results["seeds"]] == list(PLAIN)


@pytest.mark.nightly  # the controls are the same as of the page in test_page
@pytest.mark.parametrize("kind", ["signals", "seeds"])
def test_no_control_of_a_chart_leaves_the_page(use_every_control: Any, make: Any, kind: str) -> None:
    findings = make(kind, HOSTILE)
    written(findings)
    use_every_control(findings.evidence.folder / "report.html")


def test_a_planted_outlier_is_named_with_the_step_at_which_it_leaves_the_others(make: Any) -> None:
    pytest.importorskip("hmmlearn")
    page, results, _ = written(make("seeds"))
    group = results["seeds"][0]
    far = [run for run in group["runs"] if run["outlier"]]
    assert [(run["init"], run["data"]) for run in far] == [(OUTLIER, 1)]
    # Both runs of that initial model take the by-way, and two that go together leave nobody.
    assert far[0]["fork_step"] is None
    assert group["map"]["states"] == 4
    assert "init 3, data 1 is an outlier" in page
    assert group["components"]["rows"]["share"] + group["components"]["rest"]["share"] > 0.5


def test_what_is_planted_in_the_loss_is_found_and_what_is_not_in_tev_is_not(make: Any) -> None:
    page, results, _ = written(make("signals"))
    at_half = {one["predictor"]: one for one in results["predicted"] if one["fraction"] == 0.5}
    assert at_half["loss"]["area"]["estimate"] > 0.8
    assert abs(at_half["TEV"]["area"]["estimate"] - 0.5) < 0.2
    assert at_half["TEV"]["gain"]["estimate"] < -0.2
    over_all = [one for one in results["related"] if one["runs"] == "" and one["signal"] == "tev_mean"]
    assert over_all[0]["over_time"]["estimate"] == pytest.approx(1.0)  # the same noise, squared
    assert "Does TEV correlate with gradient variance?" in page
    costs = next(iter(results["costs"].values()))
    assert costs["tev"] == pytest.approx(0.01)
    assert costs["tev_amortised"] == pytest.approx(0.001)
    assert costs["variance"] == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["signals", "seeds"])
def test_a_study_without_outcomes_says_what_is_missing(make: Any, kind: str) -> None:
    page, results, _ = written(make(kind, lost=True))
    assert "have no outcome because of the machine" in page
    assert "&lt;b&gt;lost&lt;/b&gt;" in page
    assert len(results["excluded"]) == (4 * 4 * 5 if kind == "signals" else 40)
    assert results["seeds"] == []


def test_a_run_that_broke_before_its_first_reading_takes_no_map_away(make: Any) -> None:
    pytest.importorskip("hmmlearn")
    findings = make("seeds")
    results = {run.trial: run.outcome for run in findings.runs if run.trial.arm == "baseline"}
    names = {run.trial: run.run_id for run in findings.runs}
    first = next(iter(results))
    kept = {names[trial]: NO_FACTS if trial == first else facts_of(trial) for trial in results}
    save_facts(kept, findings.evidence.folder / "some.npz")
    (findings.evidence.folder / "elsewhere").mkdir()
    (findings.evidence.folder / "some.npz").rename(findings.evidence.folder / "elsewhere" / FACTS)
    (group,) = seed_groups(results, names, findings.evidence.folder / "elsewhere")
    assert group.map is not None
    assert group.map.states == 4
    assert [len(path) for path in group.map.paths].count(0) == 1


def test_a_page_without_a_training_map_says_what_would_give_one(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(statistics: Any) -> Any:
        raise MapUnavailableError("it takes hmmlearn")

    monkeypatch.setattr("trimtab.study.seed_groups.training_map", missing)
    make.cache_clear()
    page, results, _ = written(make("seeds"))
    make.cache_clear()
    assert "no training map: it takes hmmlearn" in page
    assert all(group["map"] is None for group in results["seeds"])
