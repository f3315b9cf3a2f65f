"""The contract of a kind of study: how a file is read, which runs are made, what they say, and how it is shown.

A kind is found by its slug: a folder of ``trimtab.kinds`` whose ``KIND`` is a ``Kind``, or an entry point
``trimtab.kinds`` of another package. It is imported when a study of that kind is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from trimtab.config import ConfigError, Raw, shown, unknown
from trimtab.registry import Catalogue
from trimtab.run.cost import ModelCost
from trimtab.run.folder import Outcome
from trimtab.run.spec import UserCode
from trimtab.section import Content
from trimtab.study.seed_groups import SeedGroup, seed_groups
from trimtab.study.specification import StudySpec, read_spec
from trimtab.study.trial import Results, Trial

DEFAULT = "max_lr"
Blocks = Mapping[str, Sequence[float]]
Rounds = Generator[Sequence[Trial], Results, None]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a study has, wherever it comes from: a folder at work, a finished one, or a committed one without runs.

    Attributes:
        results: the outcome of every trial; None where the machine failed and the run was given up.
        run_ids: the run of every trial; several trials may share one.
        folder: the study folder, with run folders or with arrays kept of them.
        errors: why a run has no outcome, by run id.
        blocks: final losses by held-out part and block of a run, in nats; empty where none were kept.
        cost: what the model of an arm costs.
        versions: for each set of versions, the number of runs made with it.
        pending: trials that were asked for and are not made yet.
        complete: whether the search was carried to its end.
        notes: what the reader must know of how the runs came together, such as that runs of other data were kept.
    """

    results: Results
    run_ids: Mapping[Trial, str]
    folder: Path
    errors: Mapping[str, str]
    blocks: Callable[[str], Blocks]
    cost: Callable[[str], ModelCost]
    versions: Mapping[str, int] = field(default_factory=dict[str, int])
    pending: int = 0
    complete: bool = True
    notes: Sequence[str] = ()


class StudyRun(Protocol):
    """One run of a study, as every kind has it; it may say more."""

    @property
    def trial(self) -> Trial: ...

    @property
    def run_id(self) -> str: ...

    @property
    def outcome(self) -> Outcome | None: ...


class Findings(Protocol):
    """What every kind's findings have; they hold much more."""

    @property
    def spec(self) -> StudySpec: ...

    @property
    def evidence(self) -> Evidence: ...

    @property
    def runs(self) -> Sequence[StudyRun]: ...

    @property
    def warnings(self) -> Sequence[str]: ...


def groups_from_evidence(findings: Findings) -> Sequence[SeedGroup]:
    """The groups of runs that differ in their seeds alone, computed from the outcomes and the run folders."""
    evidence = findings.evidence
    return seed_groups(evidence.results, evidence.run_ids, evidence.folder)


S = TypeVar("S", bound=StudySpec)
F = TypeVar("F", bound=Findings)


@dataclass(frozen=True)  # no slots: typing writes to an instance of a generic class
class Kind(Generic[S, F]):
    """One kind of study.

    Attributes:
        spec: the class of its specifications.
        rounds: yields the trials of each round; is sent the results of all rounds so far. What it asks for must depend
            on the results alone, so that a resumed study asks for the same trials again.
        round_name: what a display calls a round.
        analyse: the findings from the evidence. It must take evidence of an unfinished study.
        content: the findings as tables, charts, sentences and plain results.
        facts, results: the classes of ``Content.facts`` and ``Content.results``, for the schema of ``results.json``.
        has_reference: whether one arm is what the others are compared with.
        keep: writes the arrays that a study needs once its run folders are gone, into a folder.
        seed_groups: the groups of runs that differ in their seeds alone. A kind whose findings hold the groups returns
            them, so that they are not computed twice.
        adds_seeds: whether the report adds the view of seeds after the sections of the kind.
    """

    slug: str
    spec: type[S]
    rounds: Callable[[S], Rounds]
    round_name: Callable[[int], str]
    analyse: Callable[[S, Evidence], F]
    content: Callable[[F], Content]
    facts: type[Any]
    results: type[Any]
    has_reference: bool = True
    keep: Callable[[F, Path], None] = lambda findings, folder: None
    seed_groups: Callable[[F], Sequence[SeedGroup]] = groups_from_evidence
    adds_seeds: bool = True


AnyKind = Kind[Any, Any]

KINDS = Catalogue[AnyKind](
    "trimtab.kinds", lambda value: isinstance(value, Kind), lambda kind: kind.slug, first=DEFAULT
)


def kind_of(spec: StudySpec) -> AnyKind:
    """The kind of a specification."""
    return KINDS.get(spec.kind)


def read_any_study(raw: Raw, where: str, code: UserCode | None = None) -> StudySpec:
    """A study of the kind that its file names; ``max_lr`` where it names none.

    Args:
        raw: the tables of the file.
        where: the file, for errors.
        code: the user's own builders, for every arm that has none of its own.

    Raises:
        ConfigError: for an unknown kind, an unknown or missing key, a wrong type, a refused value, or an arm given
            twice.
    """
    slug = raw.get("kind", DEFAULT)
    if not isinstance(slug, str):
        raise ConfigError(f"{where}: kind: expected a name, got {shown(slug)}")
    try:
        kind = KINDS.get(slug)
    except KeyError:
        raise ConfigError(f"{where}: kind: {unknown(slug, list(KINDS.all()))}") from None
    return read_spec(kind.spec, raw, where, code or UserCode())
