"""Run a study to its end: ask the search for a round, make the runs that are missing, and again until it is answered.

Killing it at any moment loses nothing but the runs at work: every finished run is a folder named by its content.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Protocol

from trimtab.config import ConfigError
from trimtab.data import TokenData, TokenSource
from trimtab.run.check import check_run
from trimtab.run.folder import Outcome, load_outcome
from trimtab.run.identity import run_id
from trimtab.run.spec import RunSpec
from trimtab.run.texts import fingerprint_of
from trimtab.study.arms import SIXTEENTH
from trimtab.study.executors.protocol import Executor, Job, Report
from trimtab.study.folder import StorageError, claim, open_folder
from trimtab.study.kinds import KINDS, AnyFindings, AnySpec
from trimtab.study.ledger import Ledger, no_outcomes
from trimtab.study.search import Results, Trial

MOST_ATTEMPTS = 3
MOST_KILLS = 10
POLL_SECONDS = 0.5


class Display(Protocol):
    """Shows what goes on."""

    def round_started(self, name: str, total: int, to_train: int) -> None: ...

    def progress(self, trial: Trial, step: int, loss: float) -> None: ...

    def finished(self, trial: Trial, outcome: Outcome | None, message: str) -> None: ...


class Silence:
    """Shows nothing."""

    def round_started(self, name: str, total: int, to_train: int) -> None: ...

    def progress(self, trial: Trial, step: int, loss: float) -> None: ...

    def finished(self, trial: Trial, outcome: Outcome | None, message: str) -> None: ...


def run_study(
    spec: AnySpec, folder: Path, executor: Executor, display: Display | None = None, reuse: Sequence[Path] = ()
) -> AnyFindings:
    """Carry out or resume a study in a folder.

    Args:
        spec: the study.
        folder: its folder.
        executor: carries out runs.
        display: shows what goes on; silent by default.
        reuse: other study folders; a finished run that is there under the same id is copied and not made again.

    Raises:
        ConfigError: if an arm cannot be built, the folder holds something else, or one of ``reuse`` is no study folder;
            nothing was changed.
        StudyLockedError: if another live process works on the folder.
        IntegrityError: if a finished run is damaged.
        StorageError: if the disk refuses.
    """
    display = display or Silence()
    tokens_of.cache_clear()  # files may have changed since the last study of this process
    for other in reuse:
        if not (other / "runs").is_dir():
            raise ConfigError(f"--reuse {other}: not a study folder (it holds no runs)")
    check_arms(spec)
    open_folder(spec, folder)
    with Ledger(folder) as ledger:
        claim(spec, folder)
        try:
            with executor:
                return _drive(spec, folder, executor, ledger, display, reuse)
        except ConnectionError:
            raise
        except (OSError, sqlite3.OperationalError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(
                f"{folder}: {reason}; make room or check the disk, then run the same command again"
            ) from error


def replay(spec: AnySpec, folder: Path) -> AnyFindings:
    """The findings of a finished study, from its folder alone; trains and writes nothing.

    Raises:
        ConfigError: if the folder holds no such study, or one that is not finished.
        IntegrityError: if a finished run is damaged.
    """
    if not (folder / "protocol.json").exists():
        raise ConfigError(f"{folder}: not a study folder")
    tokens_of.cache_clear()
    open_folder(spec, folder)
    errors = no_outcomes(folder)

    def obtain(batch: Sequence[Trial], names: Mapping[Trial, str]) -> Results:
        found = {trial: load_outcome(folder / "runs" / names[trial]) for trial in batch}
        for trial, outcome in found.items():
            if outcome is None and names[trial] not in errors:
                raise ConfigError(
                    f"{folder}: the study is not finished (no run of '{trial.arm}' at LR {trial.learning_rate:.4g}, "
                    f"seed {trial.seed}); run 'trimtab study', or the script that defines it, to finish it"
                )
        return found

    results, names = _search(spec, obtain)
    return KINDS[spec.kind].analyse(spec, results, names, folder, errors)


def _drive(
    spec: AnySpec, folder: Path, executor: Executor, ledger: Ledger, display: Display, reuse: Sequence[Path]
) -> AnyFindings:
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)

    def obtain(batch: Sequence[Trial], names: Mapping[Trial, str]) -> Results:
        ledger.plan([(names[t], t.arm, t.tick, t.seed, t.round) for t in batch])
        present = {trial: _present(names[trial], runs, reuse) for trial in batch}
        missing = [trial for trial, outcome in present.items() if outcome is None]
        ledger.finish([names[trial] for trial, outcome in present.items() if outcome is not None])
        display.round_started(KINDS[spec.kind].round_name(batch[0].round), len(batch), len(missing))
        _train(spec, missing, names, runs, executor, ledger, display)
        return {trial: load_outcome(runs / names[trial]) for trial in batch}

    results, names = _search(spec, obtain)
    return KINDS[spec.kind].analyse(spec, results, names, folder, ledger.errors())


def _present(name: str, runs: Path, reuse: Sequence[Path]) -> Outcome | None:
    """The outcome of a run that is there, or is now copied from where it is."""
    outcome = load_outcome(runs / name)
    for other in reuse:
        source = other / "runs" / name
        if outcome is None and load_outcome(source) is not None:
            shutil.rmtree(runs / name, ignore_errors=True)
            arriving = runs / f".{name}"  # its outcome must not be there before the rest
            shutil.rmtree(arriving, ignore_errors=True)
            shutil.copytree(source, arriving)
            arriving.rename(runs / name)
            outcome = load_outcome(runs / name)
    return outcome


def _search(
    spec: AnySpec, obtain: Callable[[Sequence[Trial], Mapping[Trial, str]], Results]
) -> tuple[Results, Mapping[Trial, str]]:
    results: dict[Trial, Outcome | None] = {}
    names: dict[Trial, str] = {}
    search = KINDS[spec.kind].rounds(spec)
    batch = next(search)
    while True:
        names |= {trial: name_of(spec, trial) for trial in batch}
        results |= obtain(batch, names)
        try:
            batch = search.send(results)
        except StopIteration:
            return results, names


def _train(
    spec: AnySpec,
    missing: Sequence[Trial],
    names: Mapping[Trial, str],
    runs: Path,
    executor: Executor,
    ledger: Ledger,
    display: Display,
) -> None:
    waiting = list(reversed(missing))
    trial_of = {names[trial]: trial for trial in missing}
    attempts = dict.fromkeys(trial_of, 0)
    kills = dict.fromkeys(trial_of, 0)
    at_work: set[str] = set()
    while waiting or at_work:
        while waiting and len(at_work) < executor.capacity:
            trial = waiting.pop()
            at_work.add(names[trial])
            executor.submit(Job(names[trial], run_of(spec, trial), runs))
        for report in executor.poll(POLL_SECONDS):
            trial = trial_of[report.name]
            if report.kind == "progress":
                display.progress(trial, report.step, report.loss)
                continue
            at_work.discard(report.name)
            outcome = load_outcome(runs / report.name) if report.kind == "done" else None
            if outcome is not None:
                ledger.finish([report.name])
                display.finished(trial, outcome, "")
            elif report.kind == "storage":
                raise OSError(report.message)
            elif report.kind == "unusable":
                raise ConfigError(
                    f"a worker cannot run this study ({report.message}); define its functions at the top of a module, "
                    'guard a script by if __name__ == "__main__", or use workers=0'
                )
            else:
                report = report if report.message else replace(report, message="it ended without an outcome")
                final = _count(report, attempts, kills)
                ledger.fail(report.name, report.message, killed=report.kind == "killed", final=final)
                if final:
                    display.finished(trial, None, report.message)
                else:
                    waiting.append(trial)


def _count(report: Report, attempts: dict[str, int], kills: dict[str, int]) -> bool:
    tally, most = (kills, MOST_KILLS) if report.kind == "killed" else (attempts, MOST_ATTEMPTS)
    tally[report.name] += 1
    return tally[report.name] >= most


def run_of(spec: AnySpec, trial: Trial) -> RunSpec:
    """The run of a trial."""
    return spec.arms[trial.arm].run(trial.tick, trial.seed, trial.data_seed)


def name_of(spec: AnySpec, trial: Trial) -> str:
    """The run id of a trial."""
    run = run_of(spec, trial)
    return run_id(run, fingerprint_of(tokens_of(run.protocol.data), run.protocol.evaluation))


@cache
def tokens_of(source: TokenSource) -> TokenData:
    """The tokens of a source, loaded once by the driver."""
    return source.load()


def check_arms(spec: AnySpec) -> None:
    """Build every arm's model once, so that what cannot be built is refused before anything is written.

    Raises:
        ConfigError: naming the arm.
        CorpusError: if the data cannot be used.
    """
    for arm in spec.arms.values():
        check_run(arm.run(-8 * SIXTEENTH, 0), tokens_of(arm.protocol.data), f"arms.{arm.name}")
