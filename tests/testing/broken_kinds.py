"""Kinds of study that are wrong, each in one way, and the sound one that they are made from."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from typing import Any, ClassVar

from trimtab.section import Chart, Content, NoFacts, Rows, Section, Table
from trimtab.study.kind import Evidence, Kind
from trimtab.study.specification import FREE, StudySpec
from trimtab.study.trial import Tick, Trial, order_of


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSpec(StudySpec):
    """Every arm at two rates, then once more at the better one."""

    kind: ClassVar[str] = "sound"
    seeds: int = field(default=1, metadata=FREE)

    def ticks(self) -> tuple[Tick, ...]:
        return Tick(-96), Tick(-64)

    def first_runs(self) -> int:
        return 2 * len(self.arms) * self.seeds

    def most_runs(self) -> int:
        return self.first_runs() + len(self.arms)


@dataclass(frozen=True, slots=True)
class MadeRun:
    trial: Trial
    run_id: str
    outcome: Any


@dataclass(frozen=True, slots=True)
class PairFindings:
    spec: PairSpec
    evidence: Evidence
    runs: Sequence[MadeRun]
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class PairResults:
    losses: dict[str, float]
    number: int


def rounds(spec: PairSpec) -> Generator[Sequence[Trial], Any, None]:
    results = yield [Trial(0, arm, tick, seed) for seed in range(spec.seeds) for arm in spec.arms
                     for tick in spec.ticks()]  # fmt: skip
    yield [Trial(1, arm, best(arm, results), 1000) for arm in spec.arms]


def best(arm: str, results: Any) -> Tick:
    losses = [(outcome.final_loss, trial.tick) for trial, outcome in results.items()
              if trial.arm == arm and outcome is not None]  # fmt: skip
    return min(losses, default=(0.0, Tick(-96)))[1]


def analyse(spec: PairSpec, evidence: Evidence) -> PairFindings:
    trials = sorted(evidence.results, key=order_of)
    return PairFindings(spec, evidence, [MadeRun(t, evidence.run_ids[t], evidence.results[t]) for t in trials])


def content(findings: PairFindings) -> Content:
    losses = {run.run_id: run.outcome.final_loss for run in findings.runs if run.outcome is not None}
    chart = Chart("losses", "Losses", "By run.", [], {})
    rows = [[name, f"{loss:.3f}"] for name, loss in losses.items()]
    return Content(
        lead="Every arm at two rates.",
        sections=[Section("Losses", table=Table(["run", "loss"], rows), charts=[chart])],
        verdicts=[f"{len(losses)} runs"],
        facts=NoFacts(),
        results=PairResults(losses, len(losses)),
        rows=Rows(["run", "loss"], [[name, loss] for name, loss in losses.items()]),
    )


def kind(slug: str, **changes: Any) -> Kind[Any, Any]:
    spec = changes.pop("spec", PairSpec)
    named = type(f"{slug.title()}Spec", (spec,), {"kind": slug, "__slots__": (), "__module__": __name__})
    parts: dict[str, Any] = {
        "rounds": rounds, "round_name": lambda number: f"round {number}", "analyse": analyse, "content": content,
        "facts": NoFacts, "results": PairResults, "has_reference": False,
    }  # fmt: skip
    return Kind(slug=slug, spec=named, **(parts | changes))


sound = kind("sound")


def _asks_twice(spec: PairSpec) -> Any:
    yield from rounds(spec)
    yield [Trial(0, arm, Tick(-96), 0) for arm in spec.arms]


class _RoomySpec(PairSpec):
    __slots__ = ()

    def most_runs(self) -> int:
        return 1000


asks_twice = kind("asks_twice", rounds=_asks_twice, spec=_RoomySpec)


def _first_come(spec: PairSpec) -> Any:
    results = yield next(rounds(spec))
    yield [Trial(1, arm, next(trial.tick for trial in results if trial.arm == arm), 1000) for arm in spec.arms]


depends_on_order = kind("depends_on_order", rounds=_first_come)


def _counts_studies(spec: PairSpec) -> Any:
    _counts_studies.calls += 1
    yield [Trial(0, arm, Tick(-96), _counts_studies.calls) for arm in spec.arms]


_counts_studies.calls = 0
remembers = kind("remembers", rounds=_counts_studies)


def _greedy(spec: PairSpec) -> Any:
    yield from rounds(spec)
    yield [Trial(2, arm, Tick(-96), 2000) for arm in spec.arms]


exceeds_most_runs = kind("exceeds_most_runs", rounds=_greedy)


def _never_ends(spec: PairSpec) -> Any:
    results = yield next(rounds(spec))
    seed = 0
    while any(outcome is None for outcome in results.values()):
        seed += 1
        results = yield [Trial(1, arm, Tick(-96), seed) for arm in spec.arms]


waits_for_outcomes = kind("waits_for_outcomes", rounds=_never_ends)
lacks_a_key = kind("lacks_a_key", content=lambda findings: replace(
    content(findings), results=make_dataclass("Less", ["losses"])({})))  # fmt: skip
text_for_number = kind("text_for_number", content=lambda findings: replace(
    content(findings), results=PairResults({}, "none")))  # type: ignore[arg-type]  # fmt: skip


def _needs_outcomes(spec: PairSpec, evidence: Evidence) -> PairFindings:
    assert all(outcome.steps for outcome in evidence.results.values())
    return analyse(spec, evidence)


needs_outcomes = kind("needs_outcomes", analyse=_needs_outcomes)


def _needs_runs(spec: PairSpec, evidence: Evidence) -> PairFindings:
    max(evidence.results)
    return analyse(spec, evidence)


needs_runs = kind("needs_runs", analyse=_needs_runs)


def _in_order(spec: PairSpec, evidence: Evidence) -> PairFindings:
    runs = [MadeRun(t, evidence.run_ids[t], outcome) for t, outcome in evidence.results.items()]
    return PairFindings(spec, evidence, runs)


reports_in_order = kind("reports_in_order", analyse=_in_order)
two_charts = kind("two_charts", content=lambda findings: replace(
    content(findings), sections=2 * list(content(findings).sections)))  # fmt: skip
empty_verdict = kind("empty_verdict", content=lambda findings: replace(content(findings), verdicts=[" "]))
short_rows = kind("short_rows", content=lambda findings: replace(
    content(findings), rows=Rows(["run", "loss", "arm"], content(findings).rows.rows)))  # fmt: skip


class _ForgetfulSpec(PairSpec):
    __slots__ = ()

    def table(self) -> Any:
        return {key: value for key, value in super().table().items() if key != "seeds"}


loses_a_setting = kind("loses_a_setting", spec=_ForgetfulSpec)


class _StrictSpec(PairSpec):
    __slots__ = ()

    def fixed(self) -> Any:
        return {**super().fixed(), "seeds": self.seeds}


holds_what_is_free = kind("holds_what_is_free", spec=_StrictSpec)


class _LaxSpec(PairSpec):
    __slots__ = ()

    def fixed(self) -> Any:
        return {"kind": self.kind}


holds_nothing = kind("holds_nothing", spec=_LaxSpec)
