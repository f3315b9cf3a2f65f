"""One of each thing that a catalogue holds, as another package would bring them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import nn

from trimtab.data import TokenData, TokenSource
from trimtab.host import Site, Tap
from trimtab.hosts.decoder import DecoderHost
from trimtab.hosts.gpt import GPTHost
from trimtab.intervention import ModelEdit, Source
from trimtab.method import Method
from trimtab.optim import OptimizerConfig, TrainedParameter
from trimtab.probe import TensorProbe
from trimtab.run.folder import Outcome
from trimtab.section import Content, NoFacts, Rows, Section, Table
from trimtab.study.kind import Evidence, Kind
from trimtab.study.specification import StudySpec
from trimtab.study.trial import Tick, Trial, order_of

SOURCE = Source(title="An outside method", arxiv="", place="here", equation="x / 2")


class Half(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HalvedBranch(ModelEdit):
    """Halve both branches."""

    source: ClassVar[Source] = SOURCE

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site.ATTN_OUT, Site.MLP_OUT)

    def edit(self, tap: Tap) -> nn.Module:
        return Half()


halved = Method("halved", (HalvedBranch(),), SOURCE)

mean_square = TensorProbe(
    slug="mean_square", unit="", meaning="mean of squares", cost="cheap", value=lambda m: m.squares / m.count
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SignDescent(OptimizerConfig):
    """Steps of equal size along the sign of the gradient."""

    momentum: float = 0.0

    def build(self, parameters: Sequence[TrainedParameter], learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([one.parameter for one in parameters], lr=learning_rate, momentum=self.momentum)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Circle(TokenSource):
    """Eight ids in an endless circle."""

    vocab_size: int = 8

    def load(self) -> TokenData:
        ids = np.tile(np.arange(8), 2000).astype(np.uint16)
        return TokenData(ids, {"circle": ids[:800]}, self.vocab_size, float("nan"))


class OutsideGPTHost(GPTHost):
    """Our own GPT, by an adapter of another package."""

    family = "outside GPT"


assert DecoderHost  # hosts of decoders usually start from this one


@dataclass(frozen=True, kw_only=True, slots=True)
class OneRateSpec(StudySpec):
    """Every arm once at one rate."""

    kind: ClassVar[str] = "one_rate"
    tick: int = -96

    def ticks(self) -> tuple[Tick, ...]:
        return (Tick(self.tick),)

    def first_runs(self) -> int:
        return len(self.arms)

    def most_runs(self) -> int:
        return len(self.arms)


@dataclass(frozen=True, slots=True)
class OneRateRun:
    trial: Trial
    run_id: str
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class OneRateFindings:
    spec: OneRateSpec
    evidence: Evidence
    runs: Sequence[OneRateRun]
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class OneRateResults:
    losses: dict[str, float]


def rounds(spec: OneRateSpec) -> Generator[Sequence[Trial], Any, None]:
    yield [Trial(0, arm, Tick(spec.tick), 0) for arm in spec.arms]


def analyse(spec: OneRateSpec, evidence: Evidence) -> OneRateFindings:
    trials = sorted(evidence.results, key=order_of)
    runs = [OneRateRun(t, evidence.run_ids[t], evidence.results[t]) for t in trials]
    return OneRateFindings(spec, evidence, runs)


def content(findings: OneRateFindings) -> Content:
    losses = {run.trial.arm: run.outcome.final_loss for run in findings.runs if run.outcome is not None}
    rows = [[arm, f"{loss:.3f}"] for arm, loss in losses.items()]
    return Content(
        lead="Every arm once.",
        sections=[Section("Losses at one rate", table=Table(["arm", "loss"], rows), on_terminal=True)],
        verdicts=[f"{len(losses)} arms"],
        facts=NoFacts(),
        results=OneRateResults(losses),
        rows=Rows(["arm", "loss"], [[arm, loss] for arm, loss in losses.items()]),
    )


one_rate = Kind[OneRateSpec, OneRateFindings](
    slug="one_rate",
    spec=OneRateSpec,
    rounds=rounds,
    round_name=lambda number: "once",
    analyse=analyse,
    content=content,
    facts=NoFacts,
    results=OneRateResults,
    has_reference=False,
)

broken: Callable[[], None] = lambda: None  # noqa: E731
