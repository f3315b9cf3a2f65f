"""The contract of a kind of study: its specification, its runs, its analysis, and its presentation.

A kind is looked up by its slug. It is a folder of ``trimtab.kinds`` whose ``KIND`` is a ``Kind``, or an entry point
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
    """The data of a study, from a folder that is in use, a finished folder, or a committed folder without runs.

    Attributes:
        results: the outcome of every trial; None if the machine failed and the run was given up.
        run_ids: the run id of every trial; several trials may share a run.
        folder: the study folder, with run folders or with arrays that were saved from them.
        errors: the reason why a run has no outcome, by run id.
        blocks: returns the final losses of a run by held-out part and block, in nats; empty if the run has none.
        cost: returns the cost of an arm's model.
        versions: number of runs for each set of versions.
        pending: number of requested trials that are not done yet.
        complete: whether the search is finished.
        notes: remarks about the runs for the reader, such as that runs of other data were kept.
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
    """The attributes that the runs of every kind of study have. A kind may add others."""

    @property
    def trial(self) -> Trial: ...

    @property
    def run_id(self) -> str: ...

    @property
    def outcome(self) -> Outcome | None: ...


class Findings(Protocol):
    """The attributes that the findings of every kind have. A kind adds others."""

    @property
    def spec(self) -> StudySpec: ...

    @property
    def evidence(self) -> Evidence: ...

    @property
    def runs(self) -> Sequence[StudyRun]: ...

    @property
    def warnings(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Standing:
    """One answer of a study so far, such as the limit of an arm.

    Attributes:
        arm: the arm.
        quantity: what was measured.
        text: the answer as in the report.
        value, low, high: the answer with the ends of its 95 % interval; None if it is open on that side or unknown.
    """

    arm: str
    quantity: str
    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None


def groups_from_evidence(findings: Findings) -> Sequence[SeedGroup]:
    """The groups of runs that differ in their seeds alone, computed from the outcomes and the run folders."""
    evidence = findings.evidence
    return seed_groups(evidence.results, evidence.run_ids, evidence.folder, list(findings.spec.arms))


S = TypeVar("S", bound=StudySpec)
F = TypeVar("F", bound=Findings)


@dataclass(frozen=True)  # no slots: typing writes to an instance of a generic class
class Kind(Generic[S, F]):
    """One kind of study.

    Attributes:
        spec: the class of the specification.
        rounds: a generator that yields the trials of each round and receives the results of all rounds so far. The
            trials must depend only on the results, so that a resumed study requests the same trials again.
        round_name: the name of a round, for display.
        analyse: computes the findings from the evidence. It must accept the evidence of an unfinished study.
        content: the findings as tables, charts, sentences and plain results.
        facts, results: the classes of ``Content.facts`` and ``Content.results``, for the schema of ``results.json``.
        has_reference: whether the other arms are compared with a reference arm.
        keep: writes into a folder the arrays that the study needs after its run folders are deleted.
        seed_groups: the groups of runs that differ in their seeds alone. A kind whose findings hold the groups returns
            them, so that they are not computed twice.
        standings: the answers so far, for ``trimtab status`` and ``trimtab studies``; none by default.
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
    standings: Callable[[F], Sequence[Standing]] = lambda findings: ()
    adds_seeds: bool = True


AnyKind = Kind[Any, Any]

KINDS = Catalogue[AnyKind](
    "trimtab.kinds", lambda value: isinstance(value, Kind), lambda kind: kind.slug, first=DEFAULT
)


def kind_of(spec: StudySpec) -> AnyKind:
    """The kind of a specification."""
    return KINDS.get(spec.kind)


def read_any_study(raw: Raw, where: str, code: UserCode | None = None) -> StudySpec:
    """A study of the kind that its file names; ``max_lr`` if it names no kind.

    Args:
        raw: the tables of the file.
        where: the file, for errors.
        code: builders from user code, for every arm that does not have its own.

    Raises:
        ConfigError: for an unknown kind, an unknown or missing key, a wrong type, a refused value, or two equal
            arms.
    """
    slug = raw.get("kind", DEFAULT)
    if not isinstance(slug, str):
        raise ConfigError(f"{where}: kind: expected a name, got {shown(slug)}")
    try:
        kind = KINDS.get(slug)
    except KeyError:
        raise ConfigError(f"{where}: kind: {unknown(slug, list(KINDS.all()))}") from None
    return read_spec(kind.spec, raw, where, code or UserCode())
