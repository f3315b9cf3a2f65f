from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from trimtab.kinds.max_lr import KIND
from trimtab.kinds.max_lr.findings import LimitFindings
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.run.folder import Outcome
from trimtab.study.kind import Evidence, read_any_study
from trimtab.study.sizes import Place
from trimtab.study.stored import cost_reader
from trimtab.study.trial import Trial

LOG_VOCAB = math.log(256)
UNIGRAM = 3.1
STEPS = 400
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is missing: apt-get install chromium")
        pytest.skip("chromium is missing: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


class Visit:
    """A page opened from its file, with everything it did that a page of text would not do.

    Attributes:
        troubles: lines of the console, errors, dialogs and windows that the page opened.
        requests: the address of every request of the page and of any window that it opened.
        downloads: the names of the files that the page offered to save.
    """

    def __init__(self, browser: Any, file: Path, scheme: str = "light", width: int = 1280) -> None:
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        self.file = file
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.downloads: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.route(re.compile("^https?:"), lambda route: route.abort())
        self.page = self.context.new_page()
        self.page.on("console", lambda m: self.troubles.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda error: self.troubles.append(f"page error: {error}"))
        self.page.on("dialog", self._refuse)
        self.page.on("popup", lambda window: self.troubles.append(f"window: {window.url}"))
        self.page.on("download", lambda download: self.downloads.append(download.suggested_filename))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-drawn=true]", timeout=30_000, state="attached")

    @property
    def requests_outside(self) -> list[str]:
        """The requests for anything but the page itself and what stands inside it."""
        inside = ("data:", "blob:", self.file.as_uri())
        return [url for url in self.requests if not url.startswith(inside)]

    def _refuse(self, dialog: Any) -> None:
        self.troubles.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture
def open_page(browser: Any) -> Callable[..., Visit]:
    """Open a page: ``with open_page(file, scheme="dark", width=400) as visit``."""
    return functools.partial(Visit, browser)


ALLOWED_BUTTONS = {
    "Download plot as a PNG",
    "Zoom",
    "Pan",
    "Zoom in",
    "Zoom out",
    "Autoscale",
    "Reset axes",
}


@pytest.fixture
def use_every_control(open_page: Callable[..., Visit]) -> Callable[[Path], None]:
    """Hover over every chart of a page and click all that can be clicked: nothing may leave the page.

    The mode bar is used on one chart of each sort (the slug without its number), the legend on every chart. A dialog
    that a click opens is answered by its last button, which gives the consent.
    """

    def use(file: Path) -> None:
        with open_page(file) as visit:
            page = visit.page
            page.add_style_tag(content=".plotly-notifier { display: none }")  # it covers buttons
            slugs = page.eval_on_selector_all(".chart", "all => all.map(chart => chart.id)")
            by_sort = {re.sub(r"[-0-9]+$", "", slug): slug for slug in reversed(slugs)}
            for slug in slugs:
                page.hover(f"#{slug} .nsewdrag", force=True)
                for entry in page.query_selector_all(f"#{slug} .legendtoggle"):
                    entry.scroll_into_view_if_needed()
                    entry.click(force=True)
            for slug in by_sort.values():
                page.hover(f"#{slug} .nsewdrag", force=True)
                titles = page.eval_on_selector_all(
                    f"#{slug} .modebar-btn", "all => all.map(button => button.dataset.title)"
                )
                assert "Download plot as a PNG" in titles, f"{slug} has no mode bar"
                for index, title in enumerate(titles):
                    page.query_selector_all(f"#{slug} .modebar-btn")[index].click()
                    page.wait_for_timeout(50)
                    consents = page.query_selector_all("button:not(.modebar-btn, .notifier-close)")
                    if consents:
                        consents[-1].click(force=True)
                        page.wait_for_timeout(500)
                    assert (visit.troubles, visit.requests_outside) == ([], []), (slug, title)
                assert set(titles) <= ALLOWED_BUTTONS, slug
            images = {f"{slug}.png" for slug in by_sort.values()}
            for _ in range(100):
                if len(visit.downloads) < len(images):
                    page.wait_for_timeout(100)
            assert set(visit.downloads) == images
            assert visit.troubles == []
            assert visit.requests_outside == []

    return use


def outcome_at(trial: Trial, edge: float) -> Outcome | None:
    """A run whose loss is lowest at 2^-4 and departs at the edge; one seed of the sweep has no outcome."""
    x = trial.tick.octave
    noise = 0.02 * math.sin(trial.tick + 10 * trial.seed)
    beyond = x + 0.3 * noise / 0.02 - edge
    final = 2.0 + 0.03 * abs(x + 4) + noise
    stopped = None
    if beyond > 3:
        stopped, final = "non_finite", math.nan
    elif beyond > 1.5:
        stopped, final = "exploded", 5.9
    elif beyond > 0:
        final += 0.5 + beyond * 0.8
    shown = 6.0 if math.isnan(final) else final
    steps = [round(i * STEPS / 20) for i in range(21)]
    curve = tuple((step, shown + (LOG_VOCAB - shown) * math.exp(-step / 60)) for step in steps)
    return Outcome(
        run_id=run_id_of(trial),
        stopped=stopped,
        steps=STEPS if stopped is None else STEPS // 2,
        initial_loss=LOG_VOCAB,
        final_loss=final,
        norm_ratio=2.0,
        spike=0.3 if -0.5 < beyond <= 0 else 0.01,
        log_vocab=LOG_VOCAB,
        unigram_entropy=UNIGRAM,
        bytes_per_token=1.0,
        held_out=curve,
        seconds=1.5,
    )


def run_id_of(trial: Trial) -> str:
    return f"{abs(hash((trial.tick, trial.seed, trial.round))) % 10**12:012d}{len(trial.arm):08d}"


@pytest.fixture
def make_findings(tmp_path: Path) -> Callable[..., LimitFindings]:
    """Findings of a study that never trained: ``make_findings(edges={"baseline": -1.0, "qk_norm": 1.0})``.

    An edge is the log2 LR from which on an arm's runs fail. ``lose`` names trials whose outcome is lost.
    """

    def make(
        edges: Mapping[str, float] | None = None,
        *,
        name: str = "a study",
        lose: Callable[[Trial], bool] = lambda trial: False,
        **changes: Any,
    ) -> LimitFindings:
        edges = edges or {"baseline": -1.0, "qk_norm": 0.9, "soft_cap": 0.1}
        safe = {f"arm {index}": arm for index, arm in enumerate(edges)}
        from trimtab.methods import catalogue

        slugs = list(catalogue())
        tables = {
            "name": name,
            "reference": "arm 0",
            "learning_rates": {"low": "2^-6", "high": "2^2"},
            "training": {"steps": STEPS},
            "search": {"most_runs": 20, "replicates": 2, "extensions": 0},
            "arms": {
                alias: {"method": arm if arm in slugs else slugs[index % len(slugs)]}
                for index, (alias, arm) in enumerate(safe.items())
            },
        } | changes
        read = read_any_study(tables, "test")
        assert isinstance(read, MaxLrSpec)
        spec = renamed(read, safe)
        results: dict[Trial, Outcome | None] = {}
        search = KIND.rounds(spec)
        batch = next(search)
        while True:
            results |= {trial: None if lose(trial) else outcome_at(trial, edges[trial.arm]) for trial in batch}
            try:
                batch = search.send(results)
            except StopIteration:
                break
        identities = {trial: run_id_of(trial) for trial in results}
        errors = {identities[trial]: "RuntimeError: <b>lost</b>" for trial in results if results[trial] is None}
        return KIND.analyse(
            spec,
            Evidence(
                results=results,
                run_ids=identities,
                folder=tmp_path,
                errors=errors,
                blocks=lambda name: {},
                cost=cost_reader(spec, {}),
            ),
        )

    return make


def renamed(spec: MaxLrSpec, names: Mapping[str, str]) -> MaxLrSpec:
    """The study with other names of arms, also such as a study file may not hold."""
    arms = {names[old]: arm.named(names[old]) for old, arm in spec.arms.items()}
    places = {names[old]: Place(names[old], place.size) for old, place in spec.places.items()}
    return dataclasses.replace(spec, arms=arms, places=places, lines=arms, reference=names[spec.reference])
