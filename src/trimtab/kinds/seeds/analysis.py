"""The findings of a study of seeds: the groups of runs of each arm, and warnings."""

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
    """A run of the study."""

    trial: Trial
    run_id: str
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class SeedFindings:
    """The findings of a study of seeds.

    Attributes:
        groups: a group for each arm with at least 5 runs.
    """

    spec: SeedsSpec
    evidence: Evidence
    runs: Sequence[MadeRun]
    groups: Sequence[SeedGroup]
    warnings: Sequence[str]


def analyse(spec: SeedsSpec, evidence: Evidence) -> SeedFindings:
    """Return the findings, from run folders or from the facts that are stored when run folders are removed."""
    results = evidence.results
    groups = seed_groups(results, evidence.run_ids, evidence.folder, list(spec.arms))
    trials = seed_by_seed(results, list(spec.arms))
    runs = [MadeRun(trial, evidence.run_ids[trial], results[trial]) for trial in trials]
    return SeedFindings(spec, evidence, runs, groups, _warnings(spec, results, groups))


def _warnings(spec: SeedsSpec, results: Results, groups: Sequence[SeedGroup]) -> list[str]:
    missing = sum(outcome is None for outcome in results.values())
    lines: list[str] = []
    if missing:
        lines.append(f"{missing} of {len(results)} runs have no outcome because of the machine; they are not counted")
    for group in groups:
        broken = sum(outcome is not None and outcome.stopped is not None for outcome in (r.outcome for r in group.runs))
        if broken:
            lines.append(f"{group.arm}: {broken} of {len(group.runs)} runs were stopped early")
        if group.map is None and group.why_no_map == NOT_READ:
            lines.append(f"{group.arm}: no training map: {NOT_READ}")
        if group.components is None:
            lines.append(
                f"{group.arm}: no variance components, because not every pair of seeds ended with a finite loss"
            )
    few = [arm for arm in spec.arms if arm not in {group.arm for group in groups}]
    lines += [f"{arm}: not analysed, because fewer than 5 runs have an outcome" for arm in few]
    return lines
