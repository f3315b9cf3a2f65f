"""Read a study from a folder: of the current version, of an earlier version, or a committed folder without runs.

Reading needs neither the data nor the code of the runs, and writes nothing.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.config import ConfigError, Raw, apply_settings, load_toml
from trimtab.run.cost import ModelCost, cost_of
from trimtab.run.environment import versions_in
from trimtab.run.files import IntegrityError
from trimtab.run.folder import load_environment, load_outcome, load_texts
from trimtab.run.identity import same_settings
from trimtab.study.failures import Failures
from trimtab.study.index import INDEX, STUDY, Index, load_index
from trimtab.study.kind import Blocks, Evidence, Findings, kind_of, read_any_study
from trimtab.study.migration import errors_of, migrate
from trimtab.study.outcomes import OUTCOMES, read_outcomes, read_pending
from trimtab.study.specification import StudySpec


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """The specification and the evidence of a stored study."""

    spec: StudySpec
    evidence: Evidence

    def findings(self) -> Findings:
        """The findings of the study."""
        return kind_of(self.spec).analyse(self.spec, self.evidence)


def load_stored(folder: Path, settings: Sequence[str] = ()) -> StoredStudy:
    """The study of a folder.

    Args:
        folder: holds ``index.json``, or ``study.toml`` with ``outcomes.jsonl``, or, in version 0.1.0, ``study.toml``
            with the folder ``runs``.
        settings: changed settings such as ``criterion.margin=0.1``. They may change the labels of runs, not the runs.

    Raises:
        ConfigError: if the folder holds no study, or a setting changes the runs.
        IntegrityError: if a stored file is damaged.
    """
    if (folder / INDEX).is_file():
        index = load_index(folder)
        raw = _parsed(index.study, folder / STUDY)
        spec = _changed(raw, str(folder / STUDY), settings)
        return StoredStudy(spec, evidence_of(folder, spec, index, Failures(folder).errors()))
    if not (folder / STUDY).is_file():
        raise ConfigError(f"{folder}: not a study folder (it holds neither {INDEX} nor {STUDY})")
    raw = load_toml(folder / STUDY)
    if (folder / OUTCOMES).is_file():
        spec = _changed(raw, str(folder / STUDY), settings)
        return StoredStudy(spec, _of_outcomes(folder, spec))
    if not (folder / "runs").is_dir():
        raise ConfigError(f"{folder}: holds a {STUDY} and no results; 'trimtab study' makes them")
    index = migrated(folder)
    spec = _changed(raw, str(folder / STUDY), settings)
    return StoredStudy(spec, evidence_of(folder, spec, index, errors_of(folder)))


def migrated(folder: Path) -> Index:
    """The index of a folder of version 0.1.0.

    Raises:
        ConfigError: if its study.toml cannot be read.
        IntegrityError: if a run is damaged.
    """
    file = folder / STUDY
    spec = read_any_study(load_toml(file), str(file))
    return migrate(folder, file.read_text(encoding="utf-8"), spec)


def evidence_of(folder: Path, spec: StudySpec, index: Index, errors: Mapping[str, str]) -> Evidence:
    """The evidence of a folder with run folders. Every file that a number depends on is checked.

    Raises:
        IntegrityError: if a run is damaged.
    """
    runs = {trial: name for trial, name in index.runs.items() if trial.arm in spec.arms}
    outcomes = {name: load_outcome(folder / "runs" / name) for name in dict.fromkeys(runs.values())}
    made = {trial: name for trial, name in runs.items() if outcomes[name] is not None or name in errors}
    versions = Counter(
        versions_in(load_environment(folder / "runs" / name))
        for name, outcome in outcomes.items()
        if outcome is not None
    )
    return Evidence(
        results={trial: outcomes[name] for trial, name in made.items()},
        run_ids=made,
        folder=folder,
        errors={name: error for name, error in errors.items() if outcomes.get(name) is None},
        blocks=lambda name: load_texts(folder / "runs" / name),
        cost=cost_reader(spec, index.costs),
        versions=dict(versions),
        pending=len(runs) - len(made),
        complete=index.complete and len(runs) == len(made),
        notes=tuple(index.notes),
    )


def cost_reader(spec: StudySpec, known: dict[str, ModelCost]) -> Callable[[str], ModelCost]:
    """A function that returns the cost of an arm's model, and adds it to ``known`` if it was not recorded."""

    def read(arm: str) -> ModelCost:
        if arm not in known:
            if spec.arms[arm].missing_code:
                raise ConfigError(
                    f"arms.{arm}: your own code builds its model, and the folder does not hold that code; "
                    "run your script again"
                )
            known[arm] = cost_of(spec.arms[arm].run(0, 0))
        return known[arm]

    return read


def _of_outcomes(folder: Path, spec: StudySpec) -> Evidence:
    """The evidence of a committed study."""
    runs = [run for run in read_outcomes(folder) if run.trial.arm in spec.arms]
    blocks: dict[str, Blocks] = {run.outcome.run_id: run.blocks for run in runs}
    pending = read_pending(folder)
    return Evidence(
        results={run.trial: run.outcome for run in runs},
        run_ids={run.trial: run.outcome.run_id for run in runs},
        folder=folder,
        errors={},
        blocks=lambda name: blocks.get(name, {}),
        cost=cost_reader(spec, {}),
        versions={versions_in(load_environment(folder)): len(blocks)},
        pending=pending or 0,
        complete=pending is None,
    )


def _parsed(text: str, file: Path) -> Raw:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{file}: the text in the index is damaged ({error})") from error


def _changed(raw: Raw, where: str, settings: Sequence[str]) -> StudySpec:
    spec = read_any_study(raw, where)
    if not settings:
        return spec
    changed = read_any_study(apply_settings(raw, settings), where)
    same = list(changed.arms) == list(spec.arms) and all(
        same_settings(arm.run(0, 0), spec.arms[name].run(0, 0)) for name, arm in changed.arms.items()
    )
    if changed.kind != spec.kind or not same:
        raise ConfigError(
            f"--set {' '.join(settings)}: this changes the runs; a report can change how runs are judged, such as "
            "criterion.margin"
        )
    return changed
