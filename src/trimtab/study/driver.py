"""Run a study: request a round of trials from its kind, train the runs that are missing, and repeat until it ends.

If the driver is killed, only the runs in progress are lost. Every finished run is a folder that is named by its run id,
and the index maps each trial to a run id.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from trimtab.config import ConfigError, to_plain
from trimtab.run.check import check_run
from trimtab.run.folder import OUTCOME, Outcome, load_outcome
from trimtab.run.identity import Basis, Naming, basis_of
from trimtab.run.spec import RunSpec
from trimtab.run.texts import fingerprint_of
from trimtab.study.executors.contract import Executor, ExecutorConfig
from trimtab.study.failures import Failures
from trimtab.study.folder import StorageError, make_folder, open_index, write_study
from trimtab.study.index import Index, differences
from trimtab.study.kind import Findings, kind_of
from trimtab.study.lock import StudyLock
from trimtab.study.reuse import Source, source_of
from trimtab.study.round import Display, Round, Silence
from trimtab.study.specification import StudySpec
from trimtab.study.stored import evidence_of
from trimtab.study.tokens import Tokens
from trimtab.study.trial import SIXTEENTH, Trial

OnChange = Literal["stop", "keep", "retrain"]


def run_study(
    spec: StudySpec,
    folder: Path,
    executor: Executor | ExecutorConfig,
    display: Display | None = None,
    reuse: Sequence[Path] = (),
    *,
    on_change: OnChange = "stop",
) -> Findings:
    """Carry out, resume or extend a study in a folder.

    Args:
        spec: the study.
        folder: its folder.
        executor: trains the runs; a configuration is started for this study and folder.
        display: shows the progress; silent by default.
        reuse: other study folders or exports. A finished run with the same run id is taken from there instead of being
            trained.
        on_change: what to do with stored runs that were made with another version of the numbers, other data or other
            user code: ``stop`` with an error, ``keep`` them and record it, or ``retrain`` them.

    Raises:
        ConfigError: if an arm cannot be built, the folder holds other things or another study, stored runs were made
            with something else and ``on_change`` is ``stop``, or a folder in ``reuse`` cannot be used. Nothing was
            changed.
        StudyLockedError: if another running process holds the folder, or took it over.
        StudyStoppedError: if ``trimtab stop`` named this process.
        IntegrityError: if a stored file is damaged.
        StorageError: if a file cannot be written or read.
    """
    sources = [source_of(other) for other in reuse]
    tokens = Tokens()
    check_arms(spec, tokens, here=not isinstance(executor, ExecutorConfig) or executor.trains_here)
    described: dict[str, Any] = {}
    if isinstance(executor, ExecutorConfig):
        described = cast("dict[str, Any]", to_plain(executor))
        executor = executor.start(spec, folder)
    make_folder(folder)
    try:
        open_index(spec, folder)  # refuse before the lock file is written
        with StudyLock(folder) as lock:
            lock.describe(described or {type(executor).__name__: {}}, executor.capacity)
            index = open_index(spec, folder)
            bases = {name: _basis(arm.run(0, 0), tokens) for name, arm in spec.arms.items()}
            unchanged = {name for name, basis in bases.items() if index.bases.get(name) == basis.table()}
            for source in sources:
                source.check(spec, bases)
            changed = (
                [*differences(index.bases, bases), *_other_text(spec, index, folder, tokens)] if index.runs else []
            )
            _settle(index, bases, changed, folder, on_change)
            _forget_unfinished(index, bases.keys() - unchanged, folder)
            failures = Failures(folder)
            failures.give_another_chance()
            write_study(spec, folder, index)
            with executor:
                namings = {name: Naming(basis) for name, basis in bases.items()}
                search = _Search(spec, folder, executor, display or Silence(), sources, index, namings, failures, lock)
                search.carry_out()
            evidence = evidence_of(folder, spec, index, failures.errors())
            findings = kind_of(spec).analyse(spec, evidence)
            index.save(folder)  # now with the costs that the analysis computed
            return findings
    except ConnectionError:
        raise
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        reason = getattr(error, "strerror", None) or error
        if error.errno == errno.ELOOP:
            raise StorageError(f"{folder}: {reason}") from error
        if any(
            os.strerror(number) in str(error) for number in (errno.EMFILE, errno.ENFILE)
        ):  # a worker reports its error as text
            raise StorageError(
                f"{folder}: {reason}; close other programs or raise the limit of open files (ulimit -n), then run the "
                "same command again"
            ) from error
        raise StorageError(
            f"{folder}: {reason}; make room or check the disk, then run the same command again"
        ) from error


def _other_text(spec: StudySpec, index: Index, folder: Path, tokens: Tokens) -> list[str]:
    """Arms of version 0.1.0 whose data have another unigram entropy, the only fact of the data that it recorded."""
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
    """Apply ``on_change`` to stored runs that were made with other data, code or numerics than new runs would be."""
    if changed and on_change == "stop":
        raise ConfigError(
            f"{folder}: the stored runs were made with other data, code or numerics: {'; '.join(changed)}. Use --keep "
            "to keep them, which the page states, or --retrain to train them again (from Python: on_change)"
        )
    if on_change == "keep":
        index.notes += [line for line in changed if line not in index.notes]
    if on_change == "retrain":
        lines = [*changed, *index.notes]  # also runs that were kept before
        arms = {name for name in bases if any(line.startswith(f"{name}: ") for line in lines)}
        index.runs = {trial: name for trial, name in index.runs.items() if trial.arm not in arms}
        index.notes = [note for note in index.notes if not any(note.startswith(f"{name}: ") for name in arms)]
    index.bases = {**index.bases, **{name: basis.table() for name, basis in bases.items()}}


def _forget_unfinished(index: Index, arms: Set[str], folder: Path) -> None:
    """Take unfinished runs of arms whose basis is another now out of the index: their trials get other ids."""
    index.runs = {
        trial: name
        for trial, name in index.runs.items()
        if trial.arm not in arms or trial.of_earlier_version or (folder / "runs" / name / OUTCOME).exists()
    }


@dataclass(slots=True)
class _Search:
    """The rounds of one study."""

    spec: StudySpec
    folder: Path
    executor: Executor
    display: Display
    sources: Sequence[Source]
    index: Index
    namings: Mapping[str, Naming]
    failures: Failures
    lock: StudyLock
    outcomes: dict[str, Outcome] = field(default_factory=dict[str, Outcome])

    @property
    def runs(self) -> Path:
        """The folder that holds run folders."""
        return self.folder / "runs"

    def carry_out(self) -> None:
        """Run all rounds. At the end the index contains what they requested and trials of an earlier version."""
        self.runs.mkdir(exist_ok=True)
        kind = kind_of(self.spec)
        asked = {trial: name for trial, name in self.index.runs.items() if trial.of_earlier_version}
        results = {trial: self._outcome(name) for trial, name in asked.items()}
        search = kind.rounds(self.spec)
        batch = next(search)
        while True:
            names = {trial: self._name_of(trial) for trial in batch}
            asked |= names
            self._plan(names)
            self._make(names, kind.round_name(batch[0].round))
            results |= {trial: self._outcome(name) for trial, name in names.items()}
            try:
                batch = search.send(results)
            except StopIteration:
                break
        self.index.runs = asked
        self.index.complete = True
        self.index.save(self.folder)

    def _outcome(self, name: str) -> Outcome | None:
        """The outcome of a run, whose files are checked once here, and again when the study is analysed."""
        if name not in self.outcomes:
            found = load_outcome(self.runs / name)
            if found is None:
                return None
            self.outcomes[name] = found
        return self.outcomes[name]

    def _name_of(self, trial: Trial) -> str:
        known = self.index.runs.get(trial)
        if known is not None:  # finished, or of a basis that is still the same
            return known
        return self.namings[trial.arm].id_of(self.spec.run_of(trial))

    def _plan(self, names: Mapping[Trial, str]) -> None:
        """Write the trials of a round into the index before any of them is trained."""
        if any(self.index.runs.get(trial) != name for trial, name in names.items()):
            self.index.runs |= names
            self.index.save(self.folder)

    def _make(self, names: Mapping[Trial, str], title: str) -> None:
        trials: dict[str, Trial] = {}
        for trial, name in names.items():
            trials.setdefault(name, trial)  # one of the trials that share a run trains it
        missing = {name: trial for name, trial in trials.items() if not self._present(name, trial)}
        self.display.round_started(title, len(names), len(missing))
        self.lock.describe(self.lock.driver.executor, self.executor.capacity, title)
        jobs = {name: self.spec.run_of(trial) for name, trial in missing.items()}
        round_ = Round(missing, jobs, self.runs, self.executor, self.failures, self.display, self.lock.check)
        round_.carry_out()
        self.outcomes |= round_.outcomes

    def _present(self, name: str, trial: Trial) -> bool:
        """Whether a run is finished, or a source of other runs has it."""
        if self._outcome(name) is not None:
            return True
        return any(source.bring(name, self.spec.run_of(trial), self.runs) for source in self.sources)


def _basis(run: RunSpec, tokens: Tokens) -> Basis:
    return basis_of(run, fingerprint_of(tokens.of(run.protocol.data), run.protocol.evaluation))


def check_arms(spec: StudySpec, tokens: Tokens, *, here: bool = True) -> None:
    """Build every arm's model once, so that what cannot be built is refused before anything is written.

    Args:
        spec: the study.
        tokens: the data, which are loaded once.
        here: whether the runs are trained on this machine, so that it must have their device.

    Raises:
        ConfigError: naming the arm.
        CorpusError: if the data cannot be used.
    """
    for arm in spec.arms.values():
        if arm.missing_code:
            raise ConfigError(
                f"arms.{arm.name}: is built by your own code ({', '.join(arm.missing_code)}), which a file does not "
                "hold; run the script that defines it"
            )
        check_run(arm.run(-8 * SIXTEENTH, 0), tokens.of(arm.protocol.data), f"arms.{arm.name}", here=here)
