"""Run a study to its end: ask the kind for a round, make the runs that are missing, and again until it is answered.

Killing it at any moment loses nothing but the runs at work: every finished run is a folder named by its content, and
the index says which trial is which run.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from trimtab.config import ConfigError
from trimtab.run.check import check_run
from trimtab.run.folder import OUTCOME, Outcome, load_outcome
from trimtab.run.identity import Basis, basis_of, id_on
from trimtab.run.spec import RunSpec
from trimtab.run.texts import fingerprint_of
from trimtab.study.executors.contract import Executor
from trimtab.study.failures import Failures
from trimtab.study.folder import StorageError, make_folder, open_index, write_study
from trimtab.study.index import Index, differences
from trimtab.study.kind import Findings, kind_of
from trimtab.study.lock import StudyLock
from trimtab.study.round import Display, Round, Silence
from trimtab.study.specification import StudySpec
from trimtab.study.stored import evidence_of
from trimtab.study.tokens import Tokens
from trimtab.study.trial import SIXTEENTH, Trial

OnChange = Literal["stop", "keep", "retrain"]


def run_study(
    spec: StudySpec,
    folder: Path,
    executor: Executor,
    display: Display | None = None,
    reuse: Sequence[Path] = (),
    *,
    on_change: OnChange = "stop",
) -> Findings:
    """Carry out, resume or extend a study in a folder.

    Args:
        spec: the study.
        folder: its folder.
        executor: carries out runs.
        display: shows what goes on; silent by default.
        reuse: other study folders; a finished run that is there under the same id is copied and not made again.
        on_change: what to do with stored runs that rest on another version of the numbers, other data or other user
            code than today's: ``stop``; ``keep`` them, which is recorded; or ``retrain`` them.

    Raises:
        ConfigError: if an arm cannot be built, the folder holds something else, stored runs rest on something else and
            ``on_change`` is ``stop``, or one of ``reuse`` is no study folder; nothing was changed.
        StudyLockedError: if another live process works on the folder.
        IntegrityError: if a stored file is damaged.
        StorageError: if the disk refuses.
    """
    for other in reuse:
        if not (other / "runs").is_dir():
            raise ConfigError(f"--reuse {other}: not a study folder (it holds no runs)")
    tokens = Tokens()
    check_arms(spec, tokens)
    make_folder(folder)
    try:
        open_index(spec, folder)  # what is refused is refused before the lock file is touched
        with StudyLock(folder):
            index = open_index(spec, folder)
            bases = {name: _basis(arm.run(0, 0), tokens) for name, arm in spec.arms.items()}
            changed = (
                [*differences(index.bases, bases), *_other_text(spec, index, folder, tokens)] if index.runs else []
            )
            _settle(index, bases, changed, folder, on_change)
            failures = Failures(folder)
            failures.give_another_chance()
            write_study(spec, folder, index)
            with executor:
                search = _Search(spec, folder, executor, display or Silence(), reuse, index, bases, failures)
                search.carry_out()
            evidence = evidence_of(folder, spec, index, failures.errors())
            findings = kind_of(spec).analyse(spec, evidence)
            index.save(folder)  # with the costs that the analysis asked for
            return findings
    except ConnectionError:
        raise
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        reason = getattr(error, "strerror", None) or error
        if error.errno == errno.ELOOP:
            raise StorageError(f"{folder}: {reason}") from error
        if any(os.strerror(number) in str(error) for number in (errno.EMFILE, errno.ENFILE)):  # a worker's is text
            raise StorageError(
                f"{folder}: {reason}; close other programs or raise the limit of open files (ulimit -n), then run the "
                "same command again"
            ) from error
        raise StorageError(
            f"{folder}: {reason}; make room or check the disk, then run the same command again"
        ) from error


def _other_text(spec: StudySpec, index: Index, folder: Path, tokens: Tokens) -> list[str]:
    """The arms of version 0.1.0 whose runs saw text of another entropy; of their data nothing else was recorded."""
    lines: list[str] = []
    for name, arm in spec.arms.items():
        if name not in index.bases or index.bases[name] is not None:
            continue
        outcomes = (load_outcome(folder / "runs" / run) for trial, run in index.runs.items() if trial.arm == name)
        seen = next((outcome.unigram_entropy for outcome in outcomes if outcome is not None), None)
        if seen is not None and seen != tokens.of(arm.protocol.data).unigram_entropy:
            lines.append(f"{name}: other data (their unigram entropy differs)")
    return lines


def _settle(
    index: Index, bases: Mapping[str, Basis], changed: Sequence[str], folder: Path, on_change: OnChange
) -> None:
    """Decide what becomes of stored runs that rest on something else than today's runs would."""
    if changed and on_change == "stop":
        raise ConfigError(
            f"{folder}: the stored runs rest on something else: {'; '.join(changed)}. Give --keep to go on with them, "
            "which the page then says, or --retrain to make them again (from Python: on_change)"
        )
    if on_change == "keep":
        index.notes += [line for line in changed if line not in index.notes]
    if on_change == "retrain":
        lines = [*changed, *index.notes]  # also runs that were kept before
        arms = {name for name in bases if any(line.startswith(f"{name}: ") for line in lines)}
        index.runs = {trial: name for trial, name in index.runs.items() if trial.arm not in arms}
        index.notes = [note for note in index.notes if not any(note.startswith(f"{name}: ") for name in arms)]
    index.bases = {**index.bases, **{name: basis.table() for name, basis in bases.items()}}


class _Search:
    """The rounds of one study."""

    def __init__(
        self,
        spec: StudySpec,
        folder: Path,
        executor: Executor,
        display: Display,
        reuse: Sequence[Path],
        index: Index,
        bases: Mapping[str, Basis],
        failures: Failures,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.runs = folder / "runs"
        self.executor = executor
        self.display = display
        self.reuse = reuse
        self.index = index
        self.bases = bases
        self.failures = failures

    def carry_out(self) -> None:
        """All rounds; in the end the index holds the trials that they asked for, and no others."""
        self.runs.mkdir(exist_ok=True)
        kind = kind_of(self.spec)
        asked: dict[Trial, str] = {}
        results: dict[Trial, Outcome | None] = {}
        search = kind.rounds(self.spec)
        batch = next(search)
        while True:
            names = {trial: self._name_of(trial) for trial in batch}
            asked |= names
            self._plan(names)
            self._make(names, kind.round_name(batch[0].round))
            results |= {trial: load_outcome(self.runs / name) for trial, name in names.items()}
            try:
                batch = search.send(results)
            except StopIteration:
                break
        self.index.runs = asked
        self.index.complete = True
        self.index.save(self.folder)

    def _name_of(self, trial: Trial) -> str:
        known = self.index.runs.get(trial)
        if known is not None and (self.runs / known / OUTCOME).exists():
            return known
        return id_on(run_of(self.spec, trial), self.bases[trial.arm])

    def _plan(self, names: Mapping[Trial, str]) -> None:
        """Write the trials of a round into the index before any of them is trained."""
        if any(trial not in self.index.runs for trial in names):
            self.index.runs |= names
            self.index.save(self.folder)

    def _make(self, names: Mapping[Trial, str], title: str) -> None:
        trials: dict[str, Trial] = {}
        for trial, name in names.items():
            trials.setdefault(name, trial)  # of several trials with one run, one makes it
        missing = {name: trial for name, trial in trials.items() if self._present(name) is None}
        self.display.round_started(title, len(names), len(missing))
        jobs = {name: run_of(self.spec, trial) for name, trial in missing.items()}
        Round(missing, jobs, self.runs, self.executor, self.failures, self.display).carry_out()

    def _present(self, name: str) -> Outcome | None:
        """The outcome of a run that is there, or is now copied from where it is."""
        outcome = load_outcome(self.runs / name)
        for other in self.reuse:
            source = other / "runs" / name
            if outcome is None and load_outcome(source) is not None:
                shutil.rmtree(self.runs / name, ignore_errors=True)
                arriving = self.runs / f".{name}"  # its outcome must not be there before the rest
                shutil.rmtree(arriving, ignore_errors=True)
                shutil.copytree(source, arriving)
                arriving.rename(self.runs / name)
                outcome = load_outcome(self.runs / name)
        return outcome


def run_of(spec: StudySpec, trial: Trial) -> RunSpec:
    """The run of a trial."""
    return spec.arms[trial.arm].run(trial.tick, trial.seed, trial.data_seed)


def _basis(run: RunSpec, tokens: Tokens) -> Basis:
    return basis_of(run, fingerprint_of(tokens.of(run.protocol.data), run.protocol.evaluation))


def check_arms(spec: StudySpec, tokens: Tokens) -> None:
    """Build every arm's model once, so that what cannot be built is refused before anything is written.

    Raises:
        ConfigError: naming the arm.
        CorpusError: if the data cannot be used.
    """
    for arm in spec.arms.values():
        if arm.missing_code:
            raise ConfigError(
                f"arms.{arm.name}: is built by your own code ({', '.join(arm.missing_code)}), which a file does "
                "not hold; "
                "run the script that defines it"
            )
        check_run(arm.run(-8 * SIXTEENTH, 0), tokens.of(arm.protocol.data), f"arms.{arm.name}")
