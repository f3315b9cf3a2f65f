"""The kinds of study, each a way to read a file, to choose runs, and to make sense of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trimtab.config import ConfigError, Raw, shown, unknown
from trimtab.run.spec import ModelBuilder, OptimizerBuilder
from trimtab.run.spec import Protocol as RunProtocol
from trimtab.study import analysis, search
from trimtab.study.analysis import Findings
from trimtab.study.arms import Arm
from trimtab.study.loss_at_lr import analysis as loss_analysis
from trimtab.study.loss_at_lr import rounds as loss_rounds
from trimtab.study.loss_at_lr.analysis import LossFindings
from trimtab.study.loss_at_lr.spec import read_loss_study
from trimtab.study.max_lr_by_size import analysis as sized_analysis
from trimtab.study.max_lr_by_size import rounds as sized_rounds
from trimtab.study.max_lr_by_size.analysis import SizedFindings
from trimtab.study.max_lr_by_size.spec import read_sized_study
from trimtab.study.search import Results, Trial
from trimtab.study.seeds import analysis as seeds_analysis
from trimtab.study.seeds import rounds as seeds_rounds
from trimtab.study.seeds.analysis import SeedFindings
from trimtab.study.seeds.spec import read_seeds_study
from trimtab.study.signals import analysis as signals_analysis
from trimtab.study.signals import rounds as signals_rounds
from trimtab.study.signals.analysis import SignalFindings
from trimtab.study.signals.spec import read_signals_study
from trimtab.study.spec import read_study

AnyFindings = Findings | LossFindings | SizedFindings | SignalFindings | SeedFindings


class AnySpec(Protocol):
    """What the driver needs of a study, of whatever kind."""

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def arms(self) -> Mapping[str, Arm]: ...

    @property
    def protocol(self) -> RunProtocol: ...

    def ticks(self) -> Sequence[int]: ...

    def first_runs(self) -> int: ...

    def most_runs(self) -> int: ...

    def fixed(self) -> Raw: ...

    def table(self) -> Raw: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of study.

    Attributes:
        read: a specification from the tables of a file.
        rounds: which runs to make, given those that are there.
        round_name: what a display calls a round.
        analyse: what they say.
        has_reference: whether one arm is what the others are compared with.
    """

    read: Callable[..., Any]
    rounds: Callable[[Any], Generator[Sequence[Trial], Results, None]]
    round_name: Callable[[int], str]
    analyse: Callable[[Any, Results, Mapping[Trial, str], Path, Mapping[str, str]], AnyFindings]
    has_reference: bool = True


KINDS: Mapping[str, Kind] = {
    "max_lr": Kind(read_study, search.rounds, search.round_name, analysis.analyse),
    "loss_at_lr": Kind(read_loss_study, loss_rounds.rounds, loss_rounds.round_name, loss_analysis.analyse),
    "signals": Kind(
        read_signals_study,
        signals_rounds.rounds,
        signals_rounds.round_name,
        signals_analysis.analyse,
        has_reference=False,
    ),
    "seeds": Kind(
        read_seeds_study, seeds_rounds.rounds, seeds_rounds.round_name, seeds_analysis.analyse, has_reference=False
    ),
    "max_lr_by_size": Kind(read_sized_study, sized_rounds.rounds, search.round_name, sized_analysis.analyse),
}


def read_any_study(
    raw: Raw,
    where: str,
    *,
    build_model: ModelBuilder | None = None,
    build_optimizer: OptimizerBuilder | None = None,
) -> AnySpec:
    """A study of the kind that its file names; ``max_lr`` where it names none.

    Raises:
        ConfigError: for an unknown kind, and as that kind's own reader.
    """
    kind = raw.get("kind", "max_lr")
    if not isinstance(kind, str) or kind not in KINDS:
        problem = unknown(kind, list(KINDS)) if isinstance(kind, str) else f"expected a name, got {shown(kind)}"
        raise ConfigError(f"{where}: kind: {problem}")
    return KINDS[kind].read(raw, where, build_model=build_model, build_optimizer=build_optimizer)
