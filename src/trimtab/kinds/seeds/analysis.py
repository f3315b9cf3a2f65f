"""The findings of a study of seeds: the view of seeds of each of its arms, and what to be wary of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.kinds.seeds.spec import SeedsSpec
from trimtab.run.folder import Outcome
from trimtab.study.kind import Evidence
from trimtab.study.seed_groups import NOT_READ, SeedGroup, seed_groups
from trimtab.study.trial import Results, Trial, seed_by_seed


@dataclass(frozen=True, slots=True)
class MadeRun:
    """One run of the study."""

    trial: Trial
    run_id: str
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class SeedFindings:
    """Everything a study of seeds found.

    Attributes:
        groups: one for each arm with 5 runs or more.
    """

    spec: SeedsSpec
    evidence: Evidence
    runs: Sequence[MadeRun]
    groups: Sequence[SeedGroup]
    warnings: Sequence[str]


def analyse(spec: SeedsSpec, evidence: Evidence) -> SeedFindings:
    """The findings, from run folders or from the facts kept of them."""
    results = evidence.results
    groups = seed_groups(results, evidence.run_ids, evidence.folder, list(spec.arms))
    trials = seed_by_seed(results, list(spec.arms))
    runs = [MadeRun(trial, evidence.run_ids[trial], results[trial]) for trial in trials]
    return SeedFindings(spec, evidence, runs, groups, _warnings(spec, results, groups))


def _warnings(spec: SeedsSpec, results: Results, groups: Sequence[SeedGroup]) -> list[str]:
    missing = sum(outcome is None for outcome in results.values())
    found = [f"{missing} of {len(results)} runs have no outcome (the machine's fault, not counted)"] if missing else []
    for group in groups:
        broken = sum(outcome is not None and outcome.stopped is not None for outcome in (r.outcome for r in group.runs))
        if broken:
            found.append(f"{group.arm}: {broken} of {len(group.runs)} runs were stopped early")
        if group.map is None and group.why_no_map == NOT_READ:
            found.append(f"{group.arm}: no training map: {NOT_READ}")
        if group.components is None:
            found.append(f"{group.arm}: not every pair of seeds ended with a finite loss, so no variance components")
    few = [arm for arm in spec.arms if arm not in {group.arm for group in groups}]
    return [*found, *(f"{arm}: fewer than 5 runs ended, so nothing is said of it" for arm in few)]
