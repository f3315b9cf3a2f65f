"""Progress of a running study: live bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from trimtab.config import printable
from trimtab.run.folder import Outcome
from trimtab.study.trial import Trial


class Pace:
    """Estimates the remaining time of a round and of the study from the mean time per run so far.

    Args:
        most_runs: an upper bound on the runs of the study.
    """

    def __init__(self, most_runs: int) -> None:
        self.most_runs = most_runs
        self.started = time.monotonic()
        self.trained = 0  # in all rounds
        self.behind = 0  # runs of the study that are finished or given up
        self.done = 0  # in this round, as ``total``
        self.total = 0

    def start(self, runs: int, to_train: int) -> None:
        """Start a round of so many runs."""
        if not self.trained:
            self.started = time.monotonic()
        self.behind += runs - to_train
        self.done = 0
        self.total = to_train

    def run_ended(self) -> None:
        """Count a run of the round."""
        self.trained += 1
        self.behind += 1
        self.done += 1

    def left(self) -> str:
        """The remaining time, such as '2:05 left in this round, at most 12:30 in the study'; "" before the first run
        has ended.
        """
        if not self.trained:
            return ""
        mean = (time.monotonic() - self.started) / self.trained
        of_round = self.total - self.done
        of_study = max(of_round, self.most_runs - self.behind)
        more = f", at most {_clock(of_study * mean)} in the study" if of_study > of_round else ""
        return f"{_clock(of_round * mean)} left in this round{more}"


class PlainDisplay:
    """Prints one line per finished run."""

    def __init__(self, console: Console, most_runs: int) -> None:
        self.console = console
        self.pace = Pace(most_runs)

    def round_started(self, name: str, total: int, to_train: int) -> None:
        """Print a heading for the round."""
        self.pace.start(total, to_train)
        self.console.print(Text(f"{name}: {total} runs, {to_train} to train"))

    def progress(self, trial: Trial, step: int, loss: float) -> None:
        """Print nothing: one line per step would be too many lines."""

    def silent(self, trial: Trial, seconds: float, replaced: bool) -> None:
        """Print a line about a run that makes no progress."""
        self.console.print(Text(silence(trial, seconds, replaced=replaced)), soft_wrap=True)

    def finished(self, trial: Trial, outcome: Outcome | None, message: str) -> None:
        """Print a line with the result of the run."""
        self.pace.run_ended()
        line = f"[{self.pace.done}/{self.pace.total}] {describe(trial)}: {result(outcome, message)}"
        self.console.print(Text(f"{line}  {self.pace.left()}".rstrip()), soft_wrap=True)


class ProgressDisplay:
    """Shows a bar for the round and a line for each active run."""

    def __init__(self, console: Console, most_runs: int) -> None:
        self.pace = Pace(most_runs)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self.task = self.bar.add_task("", left="")
        self.at_work: dict[Trial, str] = {}
        self.live = Live(console=console, refresh_per_second=4, transient=True)

    def round_started(self, name: str, total: int, to_train: int) -> None:
        """Reset the bar."""
        self.pace.start(total, to_train)
        self.at_work.clear()
        self.bar.reset(
            self.task, total=max(1, to_train), completed=0 if to_train else 1, description=printable(name), left=""
        )
        self._show()

    def progress(self, trial: Trial, step: int, loss: float) -> None:
        """Update the line of the run."""
        self.at_work[trial] = f"  {describe(trial)}: step {step}, loss {loss:.3f}"
        self._show()

    def silent(self, trial: Trial, seconds: float, replaced: bool) -> None:
        """Print a line above the bar about a run that makes no progress."""
        self.live.console.print(Text(silence(trial, seconds, replaced=replaced)))

    def finished(self, trial: Trial, outcome: Outcome | None, message: str) -> None:
        """Advance the bar; print a line if the run has no outcome."""
        self.pace.run_ended()
        self.at_work.pop(trial, None)
        self.bar.update(self.task, advance=1, left=self.pace.left())
        if outcome is None:
            self.live.console.print(Text(f"{describe(trial)}: {result(outcome, message)}"))
        self._show()

    def __enter__(self) -> ProgressDisplay:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def _show(self) -> None:
        self.live.update(Group(self.bar, *(Text(line) for line in self.at_work.values())))


def _clock(seconds: float) -> str:
    """Minutes and seconds, such as 2:05."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def describe(trial: Trial) -> str:
    """Name a trial for a terminal."""
    return printable(trial.title)


def silence(trial: Trial, seconds: float, *, replaced: bool) -> str:
    """The message about a run that makes no progress."""
    done = "its worker is replaced" if replaced else "it may be stuck"
    return f"{describe(trial)}: no step for {seconds:.0f} s, {done}"


def result(outcome: Outcome | None, message: str) -> str:
    """The result of a run, such as 'loss 2.153 in 7.1 s', or the reason why there is no outcome."""
    if outcome is None:
        return f"no outcome: {message}"
    stopped = f" (stopped: {outcome.stopped})" if outcome.stopped else ""
    return f"loss {outcome.final_loss:.3f} in {outcome.seconds:.1f} s{stopped}"
