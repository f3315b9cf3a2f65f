"""Finished runs of other studies that a study takes instead of training them: from run folders, or from an export."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from trimtab.config import ConfigError, dump_toml
from trimtab.run.folder import load_environment, load_outcome
from trimtab.run.identity import Basis, id_on
from trimtab.run.kept import Arrays, read_arrays, restore
from trimtab.run.spec import RunSpec
from trimtab.study.outcomes import OUTCOMES, Made, read_outcomes
from trimtab.study.specification import StudySpec

LOOKED_AT = 20  # runs of an export that are compared with those of the study, before it is refused


class Source(Protocol):
    """The finished runs of another study."""

    def check(self, spec: StudySpec, bases: Mapping[str, Basis]) -> None:
        """Refuse a source of which this study can use no run.

        Raises:
            ConfigError: naming the source.
        """
        ...

    def bring(self, name: str, spec: RunSpec, runs: Path) -> bool:
        """Put the folder of a run among ``runs``; return whether the source has that run.

        Args:
            name: the run id.
            spec: the run.
            runs: the folder that holds run folders; the folder of the run is replaced.
        """
        ...


def source_of(folder: Path) -> Source:
    """The runs of a study folder or of an export.

    Raises:
        ConfigError: if the folder is neither.
    """
    if (folder / "runs").is_dir():
        return RunFolders(folder)
    if (folder / OUTCOMES).is_file():
        return Export(folder)
    raise ConfigError(f"--reuse {folder}: not a study folder (it holds neither runs nor {OUTCOMES})")


class RunFolders:
    """The runs of a study folder; they are copied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, spec: StudySpec, bases: Mapping[str, Basis]) -> None:
        """Refuse nothing: a study folder that has no run of this study may be one of several."""

    def bring(self, name: str, spec: RunSpec, runs: Path) -> bool:
        """Copy the folder of a run."""
        source = self.folder / "runs" / name
        if load_outcome(source) is None:
            return False
        arriving = _arriving(runs, name)
        shutil.copytree(source, arriving)
        _arrive(arriving, runs / name)
        return True


class Export:
    """The runs of an export; they are restored, without rows of steps.

    A run with probes is left out if the export holds no arrays of it: the analysis would miss its readings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _made(self) -> Mapping[str, Made]:
        return {run.outcome.run_id: run for run in read_outcomes(self.folder)}

    @cached_property
    def _kept(self) -> Mapping[str, Mapping[str, Arrays]]:
        return {file.name: read_arrays(file) for file in sorted(self.folder.glob("*.npz"))}

    def check(self, spec: StudySpec, bases: Mapping[str, Basis]) -> None:
        """Refuse an export of which no run would have the same id here: all would be trained again."""
        trials = [run.trial for run in self._made.values()][:LOOKED_AT]
        ids = {id_on(spec.run_of(replace(trial, arm=arm)), basis) for trial in trials for arm, basis in bases.items()}
        if not ids & set(self._made):
            raise ConfigError(
                f"--reuse {self.folder}: none of its runs is a run of this study on this machine (another protocol, "
                "other data, code or numerics); leave it out to train all runs"
            )

    def bring(self, name: str, spec: RunSpec, runs: Path) -> bool:
        """Restore a run from its outcome and the arrays that were kept of it."""
        made = self._made.get(name)
        if made is None:
            return False
        kept = {file: of_runs[name] for file, of_runs in self._kept.items() if name in of_runs}
        if spec.protocol.probes.probes() is not None and not kept:
            return False
        arriving = _arriving(runs, name)
        restore(arriving, made.outcome, dump_toml(spec.table()), load_environment(self.folder), made.blocks, kept)
        _arrive(arriving, runs / name)
        return True


def _arriving(runs: Path, name: str) -> Path:
    """A free place for a folder on its way: a folder with an outcome must be complete."""
    place = runs / f".{name}"
    shutil.rmtree(place, ignore_errors=True)
    return place


def _arrive(arriving: Path, run: Path) -> None:
    shutil.rmtree(run, ignore_errors=True)
    arriving.rename(run)
