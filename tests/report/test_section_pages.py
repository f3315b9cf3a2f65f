"""Pages and tables of losses at one rate and of limits by size, with names that try to be more than names."""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import plotly.graph_objects as go
import pytest
from rich.console import Console

from trimtab.report import print_findings, write_report
from trimtab.report.html import resource
from trimtab.report.schema import schema
from trimtab.run.folder import Outcome
from trimtab.study.kind import Evidence, Findings, kind_of, read_any_study
from trimtab.study.stored import cost_reader
from trimtab.study.trial import Trial

HOSTILE_ARMS = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "quotes ' \" ` {{ 7 * 7 }} %{x} ${1}",
    "[bold]markup[/bold] <b>bold</b>&lt;i&gt;",
)
HOSTILE_SIZES = ("<img src=x onerror=alert(2)>", "[red]2[/red] deep & wide", "=4()")
NAME = "<script>alert(1)</script></title><img src=x onerror=alert(1)> & </script>"
ONE_SWEEP: dict[str, Any] = {"tune": "reference", "tuning_seeds": 1, "extensions": 0}
PLAIN_ARMS, PLAIN_SIZES = ("baseline", "qk_norm"), ("1 deep", "2 deep", "4 deep")
METHODS = ("baseline", "qk_norm", "soft_cap", "layer_scale")
KINDS = ("loss_at_lr", "max_lr_by_size")
Lose = Callable[[Trial], bool]
Make = Callable[..., Findings]


def nothing_lost(trial: Trial) -> bool:
    return False


def one_lost(trial: Trial) -> bool:
    return trial.seed == 1 and "qk_norm" in trial.arm


def one_arm_lost(trial: Trial) -> bool:
    return "qk_norm" in trial.arm


def all_lost(trial: Trial) -> bool:
    return True


LOSSES = pytest.mark.parametrize("lose", [nothing_lost, one_lost, one_arm_lost, all_lost])
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def outcome_at(trial: Trial, depth: int, rank: int) -> Outcome:
    """Runs that explode beyond an edge that falls with depth."""
    beyond = trial.tick.octave + 2.0 + math.log2(depth) - 0.5 * rank
    final = 6.0 if beyond > 0 else 2.0 - 0.05 * rank + 0.01 * abs(beyond + 2) + 0.01 * math.sin(trial.seed)
    return Outcome(
        run_id="",
        stopped="exploded" if beyond > 0 else None,
        steps=20,
        initial_loss=math.log(256),
        final_loss=final,
        norm_ratio=1.0,
        spike=0.0,
        log_vocab=math.log(256),
        unigram_entropy=3.1,
        bytes_per_token=1.0,
        held_out=((0, math.log(256)), (10, (final + 5) / 2), (20, final)),
        seconds=0.5,
    )


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Findings of either kind of a study that never trained; the same again for the same question."""

    @cache
    def made(
        kind: str,
        arms: tuple[str, ...] = PLAIN_ARMS,
        sizes: tuple[str, ...] = PLAIN_SIZES,
        *,
        name: str = "a study",
        seeds: int = 3,
        lose: Lose = nothing_lost,
    ) -> Findings:
        folder = tmp_path_factory.mktemp("findings")
        raw: dict[str, Any] = {
            "kind": kind,
            "name": name,
            "reference": arms[0],
            "learning_rates": {"low": "2^-9", "high": "2^0", "octaves_apart": 3},
            "model": {"width": 16, "num_layers": 1, "num_heads": 2, "context": 8},
            "training": {"steps": 20, "batch_size": 4},
            "schedule": {"warmup_steps": 2},
            "arms": {arm: {"method": method} for arm, method in zip(arms, METHODS, strict=False)},
            "sizes": {size: {"model": {"num_layers": 2**place}} for place, size in enumerate(sizes)},
        }
        if kind == "loss_at_lr":
            raw["evaluation"] = {"final_blocks": 4}
            raw["comparison"] = {"seeds": seeds, "multiples": [1.0, 2.0]} | ONE_SWEEP
            if sizes:
                raw["comparison"]["at_size"] = sizes[0]
        else:
            raw["search"] = {"most_runs": 10, "replicates": 1, "probes_per_round": 2}
        spec = read_any_study(raw, "test")
        ranks = {name: index % len(arms) for index, name in enumerate(spec.arms)}
        search = kind_of(spec).rounds(spec)
        results: dict[Trial, Outcome | None] = {}
        batch = next(search)
        while True:
            for trial in batch:
                depth = spec.arms[trial.arm].protocol.model.num_layers if kind == "max_lr_by_size" else 1
                results[trial] = None if lose(trial) else outcome_at(trial, depth, ranks[trial.arm])
            try:
                batch = search.send(dict(results))
            except StopIteration:
                break
        names = {trial: f"{index:020d}" for index, trial in enumerate(results)}
        errors = {names[trial]: "RuntimeError: <b>lost</b>" for trial in results if results[trial] is None}
        blocks = {names[trial]: blocks_of(trial, outcome) for trial, outcome in results.items()}
        evidence = Evidence(
            results=results,
            run_ids=names,
            folder=folder,
            errors=errors,
            blocks=lambda name: blocks[name],
            cost=cost_reader(spec, {}),
        )
        return kind_of(spec).analyse(spec, evidence)

    return made


def blocks_of(trial: Trial, outcome: Outcome | None) -> dict[str, list[float]]:
    if outcome is None or outcome.stopped is not None:
        return {}
    losses = [outcome.final_loss + 0.1 * math.sin(block + trial.seed / 3 + trial.tick) for block in range(4)]
    return {"<i>one</i>": losses[:3], "two": losses[3:]}


class Page(HTMLParser):
    """What a browser would make of the page, as far as its text goes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.charts: dict[str, str] = {}
        self._open: list[str] = []
        self._chart = ""
        self.feed(text.replace(resource("vendor/plotly-basic.min.js"), ""))  # a megabyte that takes a second to read
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag not in ("meta", "link", "br"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")
        self._chart = found.get("data-for") or "" if tag == "script" else self._chart

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing"
        if tag == "script":
            self._chart = ""

    def handle_data(self, data: str) -> None:
        if self._chart:
            self.charts[self._chart] = self.charts.get(self._chart, "") + data
        elif self._open:
            self.texts[self._open[-1]][-1] += data


READ: dict[Path, tuple[Page, dict[str, Any]]] = {}


def written(findings: Findings) -> tuple[Page, dict[str, Any]]:
    """The page and the JSON content; a report that was written is not written again."""
    if findings.evidence.folder not in READ:
        results = write_report(findings)
        READ[findings.evidence.folder] = (
            Page((findings.evidence.folder / "report.html").read_text(encoding="utf-8")),
            results,
        )
    return READ[findings.evidence.folder]


def page_of(findings: Findings) -> Page:
    return written(findings)[0]


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(item)


@EVERY_KIND
def test_a_page_asks_for_nothing_from_outside(make: Make, kind: str) -> None:
    page = page_of(make(kind, HOSTILE_ARMS, HOSTILE_SIZES, name=NAME))
    policy = [found["content"] for tag, found in page.elements if found.get("http-equiv") == "Content-Security-Policy"]
    assert policy
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none'")
    for tag, found in page.elements:
        assert tag not in ("iframe", "object", "embed", "img", "base", "form", "video", "audio"), tag
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            assert (found.get(key) or "data:").startswith("data:"), (tag, found)
        assert not any(key.startswith("on") for key in found), (tag, found)
        assert "url(" not in (found.get("style") or "")
    assert not any("@import" in style or "url(" in style for style in page.texts["style"])


@EVERY_KIND
@LOSSES
def test_every_chart_is_a_plotly_figure_with_a_place_of_its_own(make: Make, kind: str, lose: Lose) -> None:
    page = page_of(make(kind, lose=lose))
    homes = [found["id"] for tag, found in page.elements if found.get("class") == "chart"]
    assert homes
    assert len(set(homes)) == len(homes)
    assert set(homes) == set(page.charts)
    for slug, text in page.charts.items():
        assert not set("<>&") & set(text), slug
        chart = strict(text)
        figure = go.Figure(data=chart["data"], layout=chart["layout"])
        assert figure.layout.height
        for trace in chart["data"]:
            assert len(trace["x"]) == len(trace["y"])
            for bars, axis in (("error_x", "x"), ("error_y", "y")):
                for part in ("array", "arrayminus"):
                    sizes = trace.get(bars, {}).get(part)
                    assert sizes is None or len(sizes) == len(trace[axis])
                    assert sizes is None or all(size >= 0 for size in sizes), (slug, bars, part)


@EVERY_KIND
def test_charts_show_what_was_measured(make: Make, kind: str) -> None:
    page = page_of(make(kind))
    assert any(trace["x"] for text in page.charts.values() for trace in strict(text)["data"])
    if kind == "loss_at_lr":
        assert set(page.charts) == {
            "by-size-0", "by-size-1", "differences",
            "tokens-0", "tokens-1", "tokens-2", "compute-0", "compute-1", "compute-2",
        }  # fmt: skip
        trace = strict(page.charts["by-size-0"])["data"][0]
        assert trace["x"] == [1, 2, 4]
    else:
        assert set(page.charts) == {f"{m}-against-size" for m in ("quality", "collapse", "lr_sensitivity")}
        names = [trace.get("name") for trace in strict(page.charts["collapse-against-size"])["data"]]
        assert names == ["baseline", None, None, "qk_norm", None, None], "a line and a diamond for each arm"


@EVERY_KIND
def test_names_with_markup_are_text_on_the_page(make: Make, kind: str) -> None:
    page = page_of(make(kind, HOSTILE_ARMS, HOSTILE_SIZES, name=NAME))
    assert page.texts["h1"] == [NAME]
    assert page.texts["title"] == [f"{NAME} - trimtab"]
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "b", "i", "a", "red", "bold"}
    scripts = [found for tag, found in page.elements if tag == "script"]
    assert len(scripts) == len(page.charts) + 2
    cells = {text.strip() for tag in ("td", "th") for text in page.texts[tag]}
    assert set(HOSTILE_ARMS) <= cells
    assert set(HOSTILE_SIZES) <= cells
    items = " ".join(page.texts["li"])
    assert all(arm in items for arm in HOSTILE_ARMS[1:])


@EVERY_KIND
def test_names_with_markup_are_text_in_charts(make: Make, kind: str) -> None:
    page = page_of(make(kind, HOSTILE_ARMS, HOSTILE_SIZES, name=NAME))
    seen: set[str] = set()
    for slug, text in page.charts.items():
        for one in strings(strict(text)):
            template = "<extra>" in one  # ours, and no name stands in it
            assert template or "<" not in one, (slug, one)
            assert not template or not any(name in one for name in (*HOSTILE_ARMS, *HOSTILE_SIZES))
            seen.add(html.unescape(one))
    assert set(HOSTILE_ARMS) <= seen or {f"{arm}, {HOSTILE_SIZES[0]}" for arm in HOSTILE_ARMS[1:]} <= seen
    shown = "\n".join(seen)
    assert all(arm in shown for arm in HOSTILE_ARMS)


@EVERY_KIND
@LOSSES
def test_a_report_is_written_whatever_was_lost(make: Make, kind: str, lose: Lose) -> None:
    findings = make(kind, lose=lose)
    page, results = written(findings)
    assert strict((findings.evidence.folder / "results.json").read_text(encoding="utf-8")) == results
    jsonschema.validate(results, schema(kind))
    assert (findings.evidence.folder / "results.csv").stat().st_size > 100
    text = (findings.evidence.folder / "report.html").read_text(encoding="utf-8")
    assert "<b>lost" not in text
    assert set(results["study"]["verdicts"]) <= set(page.texts["li"])
    for verdict in results["study"]["verdicts"]:
        assert "nan" not in verdict.split(), verdict
        assert "+nan" not in verdict, verdict


@EVERY_KIND
@LOSSES
def test_what_was_excluded_is_listed_with_its_reason(make: Make, kind: str, lose: Lose) -> None:
    findings = make(kind, lose=lose)
    page = page_of(findings)
    for run_id, reason in findings.evidence.errors.items():
        assert any(run_id in item and reason in item for item in page.texts["li"]), run_id


def test_losses_of_one_seed_and_of_one_size_have_a_page(make: Make) -> None:
    page = page_of(make("loss_at_lr", sizes=(), seeds=1))
    assert "by-size-0" not in page.charts
    assert {"differences", "tokens-0", "compute-0"} == set(page.charts)
    assert any("cannot tell from a single seed" in item for item in page.texts["li"])


def printed(findings: Findings, width: int = 2000) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_findings(findings, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@EVERY_KIND
@LOSSES
def test_the_terminal_shows_the_table_and_every_verdict(make: Make, kind: str, lose: Lose) -> None:
    findings = make(kind, lose=lose)
    text = printed(findings)
    lines = text.splitlines()
    _, results = written(findings)
    assert results["study"]["verdicts"] or lose is all_lost
    for verdict in results["study"]["verdicts"]:
        assert verdict in lines
    for warning in results["study"]["warnings"]:
        assert f"warning: {warning}" in lines
    for size in PLAIN_SIZES:
        assert sum(size in line and "│" in line for line in lines) >= 1
    for arm in PLAIN_ARMS:
        assert arm in text


@EVERY_KIND
def test_names_with_markup_are_text_on_a_terminal(make: Make, kind: str) -> None:
    text = printed(make(kind, HOSTILE_ARMS, HOSTILE_SIZES, name=NAME))
    for name in (*HOSTILE_ARMS, *HOSTILE_SIZES):
        assert name in text
    assert "\x1b" not in text


@EVERY_KIND
def test_the_page_and_its_numbers_agree(make: Make, kind: str) -> None:
    findings = make(kind, sizes=PLAIN_SIZES if kind == "loss_at_lr" else tuple(f"{2**i} deep" for i in range(5)))
    page, results = written(findings)
    items = page.texts["li"]
    assert items[: len(results["study"]["verdicts"])] == results["study"]["verdicts"]
    if kind == "loss_at_lr":
        ahead = [one for one in results["compared"] if one["difference"] and one["difference"]["high"] < 0]
        assert ahead, "an arm was made to be better"
        means = [one for one in results["overall"] if one["mean"]["high"] is not None and one["mean"]["high"] < 0]
        assert sum("lower loss" in item for item in items) == len(ahead) + len(means)
    else:
        assert sum("LR50" in item and "it falls with size" in item for item in items) == 4


# The same in a real browser, where there is one.


@EVERY_KIND
def test_a_browser_draws_every_chart_and_does_nothing_else(open_page: Any, make: Make, kind: str) -> None:
    findings = make(kind, HOSTILE_ARMS, HOSTILE_SIZES, name=NAME)
    charts = page_of(findings).charts
    with open_page(findings.evidence.folder / "report.html") as visit:
        for slug in charts:
            assert visit.page.query_selector_all(f"#{slug} .scatterlayer path"), f"{slug} is empty"
        assert visit.page.query_selector_all("img, h1 *, td *, svg a, svg image") == []
        assert visit.troubles == []
        assert visit.requests_outside == []


@pytest.mark.nightly  # the controls are the same as of the page in test_page
@EVERY_KIND
def test_no_control_of_a_chart_leaves_the_page(use_every_control: Any, make: Make, kind: str) -> None:
    findings = make(kind, HOSTILE_ARMS, HOSTILE_SIZES, name=NAME)
    page_of(findings)
    use_every_control(findings.evidence.folder / "report.html")
