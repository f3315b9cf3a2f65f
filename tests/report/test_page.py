"""The page in a real browser, with names that try to be more than names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.inspection.page import tev_page
from trimtab.inspection.tev import TevPoint
from trimtab.kinds.max_lr.findings import LimitFindings
from trimtab.report import write_report

HOSTILE = {
    "<script>alert(1)</script>": -1.0,
    "</script><img src=x onerror=alert(1)>": 0.9,
    "=cmd()": 0.1,
    "\u202eright to left\u202c": -0.4,
    "\u2066isolated\u200f {{ name }} {% raw %}": 0.3,
    "quotes ' \" ` {{ 7 * 7 }} %{x} ${1}": 0.5,
    '<a href="javascript:alert(1)">x</a>': 1.0,
    "<b>bold</b>&lt;i&gt;<br>": -2.0,
    "a" * 100: 30.0,
}
NAME = "<script>alert(1)</script></title><img src=x onerror=alert(1)> & </script>"
FIRST_CELLS = "h2:text-is('The answer') ~ .scroll tbody td:first-child"


@pytest.fixture
def hostile(make_findings: Callable[..., LimitFindings]) -> Path:
    findings = make_findings(HOSTILE, name=NAME, lose=lambda t: (t.round, t.tick) == (0, -96) and t.arm == "=cmd()")
    write_report(findings)
    return findings.evidence.folder / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_draws_every_chart_and_does_nothing_else(
    open_page: Any, hostile: Path, tmp_path: Path, scheme: str
) -> None:
    assert hostile.stat().st_size < 10_000_000
    with open_page(hostile, scheme) as visit:
        page = visit.page
        charts = page.query_selector_all(".chart")
        assert len(charts) == 5 + len(HOSTILE), "limits, losses, labels, two posteriors, and curves of each arm"
        for chart in charts:
            name = chart.get_attribute("id")
            assert chart.query_selector("svg.main-svg"), f"{name} is not drawn"
            marks = chart.query_selector_all(".trace path, .scatterlayer path")
            assert marks, f"{name} is empty"
        page.wait_for_timeout(300)
        page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
        assert visit.troubles == []
        assert visit.requests_outside == []


def test_no_control_of_a_chart_leaves_the_page(use_every_control: Callable[[Path], None], hostile: Path) -> None:
    use_every_control(hostile)


def test_no_control_of_an_inspection_leaves_the_page(
    use_every_control: Callable[[Path], None], open_page: Any, tmp_path: Path
) -> None:
    points = [TevPoint(name, "table", None, 0, 0, {"tev_mean": 0.1, "tev_std": 0.2}) for name in HOSTILE]
    file = tmp_path / "inspection.html"
    file.write_text(tev_page(points), encoding="utf-8")
    use_every_control(file)


def test_names_are_shown_as_text(open_page: Any, hostile: Path) -> None:
    with open_page(hostile) as visit:
        page = visit.page
        assert page.inner_text("h1") == NAME
        assert page.title() == f"{NAME} - trimtab"
        cells = page.eval_on_selector_all(FIRST_CELLS, "all => all.map(x => x.textContent)")
        assert cells == list(HOSTILE)
        captions = page.eval_on_selector_all("figcaption", "all => all.map(x => x.textContent)")
        assert captions == list(HOSTILE)
        # Plotly joins what it draws from several text nodes; spaces may be hard ones there.
        for chart in ("limits", "loss-against-lr", "label-map"):
            drawn = page.eval_on_selector_all(f"#{chart} svg text", "all => all.map(x => x.textContent)")
            shown = {text.replace("\u00a0", " ") for text in drawn}
            for name in HOSTILE:
                assert name in shown, f"{name!r} is not among {sorted(shown)} of {chart}"
        assert page.query_selector_all("img, h1 *, td a, td b, svg a, svg image") == []
        assert visit.troubles == []


def test_hovering_shows_names_as_text(open_page: Any, hostile: Path) -> None:
    with open_page(hostile) as visit:
        page = visit.page
        points = page.query_selector_all("#label-map .point")
        seen: set[str] = set()
        for point in points[:: max(1, len(points) // 40)]:
            point.scroll_into_view_if_needed()
            box = point.bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            page.wait_for_timeout(60)
            seen |= set(page.eval_on_selector_all("#label-map .hoverlayer text", "a => a.map(x => x.textContent)"))
        assert len(seen) > 5, "nothing was shown on hovering"
        assert page.query_selector_all("svg a, svg image, img") == []
        assert visit.troubles == []


def test_page_follows_the_colour_scheme(open_page: Any, hostile: Path) -> None:
    colours: dict[str, tuple[str, str]] = {}
    with open_page(hostile) as visit:
        for scheme in ("light", "dark"):
            visit.page.emulate_media(color_scheme=scheme)
            visit.page.wait_for_timeout(500)
            paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
            ink = visit.page.evaluate("getComputedStyle(document.querySelector('#limits svg .xtick text')).fill")
            colours[scheme] = (paper, ink)
        assert visit.troubles == []
    for scheme, (paper, ink) in colours.items():
        assert contrast(paper, ink) >= 4.5, (scheme, paper, ink)
    assert colours["light"] != colours["dark"]


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two CSS colours, as WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [1280, 400])
def test_no_label_is_cut_and_no_legend_covers_its_axis(open_page: Any, make_findings: Any, width: int) -> None:
    methods = ("baseline", "sigma_reparam", "soft_temp", "soft_cap", "soft_clip")
    methods += ("layer_scale", "qk_norm", "qk_norm_cap", "qkv_norm", "qk_fc_norm")
    findings = make_findings({name: -3 + 0.4 * index for index, name in enumerate(methods)})
    write_report(findings)
    with open_page(findings.evidence.folder / "report.html", "light", width) as visit:
        flaws = visit.page.evaluate(
            """() => {
            const flaws = [];
            const meets = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1
                && b.top < a.bottom - 1;
            for (const chart of document.querySelectorAll(".chart")) {
                const frame = chart.getBoundingClientRect();
                const legend = chart.querySelector(".legend");
                const title = chart.querySelector(".xtitle");
                for (const text of chart.querySelectorAll("svg .xtick text, svg .ytick text, .xtitle, .ytitle")) {
                    const box = text.getBoundingClientRect();
                    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
                        flaws.push(`${chart.id}: '${text.textContent}' is cut`);
                    if (legend && meets(box, legend.getBoundingClientRect()))
                        flaws.push(`${chart.id}: the legend covers '${text.textContent}'`);
                }
                const ticks = [...chart.querySelectorAll(".xtick text")].map(x => x.getBoundingClientRect());
                if (ticks.some((box, i) => i && meets(box, ticks[i - 1]))) flaws.push(`${chart.id}: ticks meet`);
                if (legend && legend.getBoundingClientRect().bottom > frame.bottom + 1)
                    flaws.push(`${chart.id}: the legend is cut`);
            }
            if (document.documentElement.scrollWidth > document.documentElement.clientWidth + 1)
                flaws.push("the page scrolls sideways");
            return flaws;
        }"""
        )
        assert flaws == []
