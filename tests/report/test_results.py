from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from typing import Any

import jsonschema
import plotly.graph_objects as go
import pytest
from rich.console import Console

from trimtab.config import printable
from trimtab.kinds.max_lr.agreement import order_agreement
from trimtab.kinds.max_lr.findings import LimitFindings
from trimtab.kinds.max_lr.page import answer, content
from trimtab.kinds.max_lr.table import edge_table, limit, ratio, result_table
from trimtab.report import print_findings, report_of, write_report
from trimtab.report.output import json_text
from trimtab.report.schema import schema
from trimtab.study.labels import Label
from trimtab.study.trial import Trial

Make = Callable[..., LimitFindings]
HOSTILE = (
    "{{ 7 * 7 }} %{x} ${1} %25",
    "<b>bold</b>&lt;i&gt;<br>",
    "</script><!--",
    "[red]markup[/red] [link=x]y",
    "a" * 99 + "b",
    "a" * 99 + "c",
    "\u202eright to left\u2066 mark\u200f",
    "two\nlines\rand\x1b[31m colour",
    'quotes " and, commas; tabs\t',
)
FORMULAE = ("=cmd()", "+1+1", "-2+3", "@SUM(A1)", "\t=1")


def nothing_lost(trial: Trial) -> bool:
    return False


def one_lost(trial: Trial) -> bool:
    return (trial.round, trial.tick, trial.arm) == (0, -32, "qk_norm")


def one_arm_lost(trial: Trial) -> bool:
    return trial.arm == "qk_norm"


def all_lost(trial: Trial) -> bool:
    return True


LOSSES = pytest.mark.parametrize("lose", [nothing_lost, one_lost, one_arm_lost, all_lost])


@pytest.fixture
def results(make_findings: Make) -> dict[str, Any]:
    return json.loads(json_text(report_of(make_findings()).results))


def test_paths_that_programs_rely_on_exist(results: dict[str, Any]) -> None:
    assert results["study"]["name"] == "a study"
    assert len(results["study"]["spec_hash"]) == 16
    for name in ("baseline", "qk_norm", "soft_cap"):
        arm = results["arms"][name]
        assert arm["method"] == name
        assert isinstance(arm["best_loss"], float)
        assert isinstance(arm["lr_sensitivity"]["estimate"], float)
        assert set(arm["edges"]) == set(results["pairs"]) == {"quality", "collapse"}
        assert set(arm["counts"]) == {label.value for label in Label}
        for criterion in ("half_d", "d", "double_d", "collapse", "collapse_at_entropy", "strict"):
            for question in ("breaks", "usable", "ratio"):
                for level in ("lr50", "lr10"):
                    found = arm["criteria"][criterion][question][level]
                    assert set(found) == {"estimate", "low", "high", "bound"}
    for run in results["runs"]:
        assert {"arm", "lr", "seed", "label", "final_loss", "steps"} <= set(run)


@LOSSES
def test_results_follow_their_schema(make_findings: Make, lose: Callable[[Trial], bool]) -> None:
    results = json.loads(json_text(report_of(make_findings(lose=lose)).results))
    described = schema("max_lr")
    jsonschema.Draft202012Validator.check_schema(described)
    jsonschema.validate(results, described)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("study", "spec_hash"), 3),
        (("arms", "baseline", "best_loss"), "low"),
        (("arms", "baseline", "criteria", "d", "breaks", "lr50", "bound"), "maybe"),
        (("runs", 0, "label"), "fine"),
        (("runs", 0, "lr"), None),
    ],
)
def test_schema_notices_a_wrong_value(results: dict[str, Any], path: tuple[str | int, ...], value: Any) -> None:
    table: Any = results
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(results, schema("max_lr"))


@pytest.mark.parametrize(
    "path",
    [("study", "spec_hash"), ("arms", "baseline", "criteria", "d"), ("arms", "baseline", "counts"), ("runs", 0, "lr")],
)
def test_schema_notices_a_missing_key(results: dict[str, Any], path: tuple[str | int, ...]) -> None:
    table: Any = results
    for key in path[:-1]:
        table = table[key]
    del table[path[-1]]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(results, schema("max_lr"))


@LOSSES
def test_every_limit_has_an_interval_or_a_bound(make_findings: Make, lose: Callable[[Trial], bool]) -> None:
    results = report_of(make_findings(lose=lose)).results
    for name, arm in results["arms"].items():
        for criterion, found in arm["criteria"].items():
            for question in ("breaks", "usable", "ratio"):
                for level in ("lr50", "lr10"):
                    one = found[question][level]
                    place = (name, criterion, question, level, one)
                    if one["estimate"] is not None and one["bound"] is None:
                        assert one["low"] is not None or one["high"] is not None, place
                        assert (one["low"] or 0) <= one["estimate"] <= (one["high"] or math.inf), place
                    if one["estimate"] is None:
                        assert one["bound"] in ("no_single_edge", "never_learned", "no_data", "undetermined"), place


def test_a_limit_in_the_table_shows_its_interval_or_sign(make_findings: Make) -> None:
    findings = make_findings()
    table = result_table(findings, order_agreement(findings))
    assert len(table.rows) == 3
    for row in table.rows:
        cells = dict(zip(table.columns, row, strict=True))
        for column in ("loses quality at (LR50)", "collapses at (LR50)", "usable up to"):
            cell = cells[column]
            assert "[" in cell or cell[0] in "<>" or cell in ("no single edge", "one edge, see collapse"), cells
    for row in edge_table(findings).rows:
        assert "[" in row[2] or row[2][0] in "<>", row


def test_estimates_lie_where_the_runs_fail(results: dict[str, Any]) -> None:
    for arm, edge in (("baseline", -1.0), ("qk_norm", 0.9), ("soft_cap", 0.1)):
        found = results["arms"][arm]["criteria"]["d"]["breaks"]["lr50"]
        assert found["bound"] is None
        assert abs(math.log2(found["estimate"]) - edge) < 0.7
        assert found["low"] < 2**edge < found["high"]
    one = results["arms"]["qk_norm"]["criteria"]["d"]["ratio"]["lr50"]
    assert one["low"] < 2**1.9 < one["high"]


def test_edges_outside_the_tested_range_are_bounds(make_findings: Make) -> None:
    findings = make_findings({"baseline": -1.0, "qk_norm": 30.0, "soft_cap": -30.0})
    results = report_of(findings).results
    above = results["arms"]["qk_norm"]["criteria"]["d"]
    assert above["breaks"]["lr50"]["bound"] == "above"
    assert above["breaks"]["lr50"]["estimate"] == 4.0
    assert above["ratio"]["lr50"]["bound"] == "above"
    assert above["ratio"]["lr50"]["high"] is None
    below = results["arms"]["soft_cap"]["criteria"]["d"]["usable"]["lr50"]
    assert below["bound"] == "below"
    shown = findings.arms["qk_norm"].criteria["d"]
    assert limit(shown.breaks.lr50).startswith("> 4")
    assert ratio(shown.ratio.lr50).startswith("> ")


def test_runs_without_outcome_are_listed_with_their_reason(make_findings: Make) -> None:
    results = report_of(make_findings(lose=one_lost)).results
    (excluded,) = results["excluded"]
    assert "lost" in excluded["reason"]
    (run,) = [run for run in results["runs"] if run["id"] == excluded["id"]]
    assert (run["label"], run["final_loss"], run["steps"]) == ("no_outcome", None, 0)
    assert results["arms"]["qk_norm"]["counts"]["no_outcome"] == 1


@pytest.mark.parametrize("name", FORMULAE)
def test_cells_that_a_spreadsheet_would_run_are_disarmed(make_findings: Make, name: str) -> None:
    text = report_of(make_findings({"baseline": -1.0, name: 0.5})).csv
    table = list(csv.reader(io.StringIO(text, newline="")))
    assert len({len(row) for row in table}) == 1
    assert [row[0] for row in table] == ["arm", "baseline", "baseline", f"'{name}", f"'{name}"]
    for row in table:
        for cell in row:
            starts = cell[:1] in ("=", "+", "@", "\t", "\r", "-")
            assert not starts or float(cell) < 0, f"armed: {cell!r}"


@pytest.fixture
def hostile(make_findings: Make) -> LimitFindings:
    return make_findings(dict.fromkeys(HOSTILE, 0.1) | {HOSTILE[0]: -1.0})


def test_hostile_names_come_back_whole_from_the_csv(hostile: LimitFindings) -> None:
    table = list(csv.reader(io.StringIO(report_of(hostile).csv, newline="")))
    assert len({len(row) for row in table}) == 1
    assert [row[0] for row in table] == ["arm", *(name for name in HOSTILE for _ in range(2))]


def test_hostile_names_are_plain_and_whole_on_a_narrow_terminal(hostile: LimitFindings) -> None:
    console = Console(file=io.StringIO(), width=130, highlight=False, force_terminal=False)
    print_findings(hostile, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(character.isprintable() or character == "\n" for character in text)
    cells = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    shown = "".join(cells).replace(" ", "")
    for name in HOSTILE:
        assert printable(name).replace(" ", "") in shown, name


def test_csv_has_a_row_an_arm_and_edge_with_the_numbers_of_the_json(make_findings: Make) -> None:
    report = report_of(make_findings())
    results = report.results
    table = list(csv.DictReader(io.StringIO(report.csv)))
    assert [(row["arm"], row["edge"]) for row in table] == [
        (arm, edge) for arm in results["arms"] for edge in ("quality", "collapse")
    ]
    for row in table:
        arm = results["arms"][row["arm"]]
        criterion = arm["criteria"]["d" if row["edge"] == "quality" else "collapse"]
        assert float(row["best_loss"]) == arm["best_loss"]
        assert float(row["breaks_lr50_estimate"]) == criterion["breaks"]["lr50"]["estimate"]
        assert row["group"] == arm["edges"][row["edge"]]["group"]
        assert int(row["stable"]) == arm["counts"]["stable"]


@LOSSES
def test_figures_are_plotly_figures(make_findings: Make, lose: Callable[[Trial], bool]) -> None:
    findings = make_findings(lose=lose)
    charts = [chart for section in content(findings).sections for chart in section.charts]
    assert len({chart.slug for chart in charts}) == len(charts) == 5 + len(findings.arms)
    for chart in charts:
        json.dumps({"data": list(chart.data), "layout": chart.layout}, allow_nan=False)
        figure = go.Figure(data=list(chart.data), layout=chart.layout)
        assert figure.layout.height


@LOSSES
def test_a_report_is_written_whatever_was_lost(make_findings: Make, lose: Callable[[Trial], bool]) -> None:
    findings = make_findings(lose=lose)
    write_report(findings)
    for name in ("results.json", "results.csv", "report.html"):
        assert (findings.evidence.folder / name).stat().st_size > 100
    conclusions = answer(findings, order_agreement(findings)).lines
    assert conclusions[-1] == "limits of small models need not carry over to large ones"
    assert f"<li>{conclusions[-1]}</li>" in (findings.evidence.folder / "report.html").read_text(encoding="utf-8")


def test_order_is_compared_with_the_reported_one_from_four_arms_on(make_findings: Make) -> None:
    assert order_agreement(make_findings()) is None
    same = make_findings({"baseline": -3.0, "layer_scale": -1.5, "soft_cap": 0.0, "qkv_norm": 1.0, "qk_norm_cap": 0.5})
    found = order_agreement(same)
    assert found is not None
    assert found.tau_b.low <= found.tau_b.estimate <= found.tau_b.high <= 1
    assert found.tau_b.estimate > 0.9
    assert found.left_out == ["qk_norm_cap"]
    reversed_order = make_findings({"baseline": 1.0, "layer_scale": 0.0, "soft_cap": -1.5, "qkv_norm": -3.0})
    other = order_agreement(reversed_order)
    assert other is not None
    assert other.tau_b.estimate < -0.9
