"""What a person sees while a study runs: live bars on a terminal, plain lines elsewhere."""

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
    """Time left in a round, from the pace so far."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.done = 0
        self.total = 0

    def start(self, total: int) -> None:
        """A round of ``total`` runs begins."""
        self.started = time.monotonic()
        self.done = 0
        self.total = total

    def left(self) -> str:
        """'2:05 left in this round', or nothing before the first run ended."""
        if not self.done:
            return ""
        seconds = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} left in this round"


class PlainDisplay:
    """One line a finished run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.pace = Pace()

    def round_started(self, name: str, total: int, to_train: int) -> None:
        """A heading for the round."""
        self.pace.start(to_train)
        self.console.print(Text(f"{name}: {total} runs, {to_train} to train"))

    def progress(self, trial: Trial, step: int, loss: float) -> None:
        """Too much for plain lines."""

    def silent(self, trial: Trial, seconds: float, replaced: bool) -> None:
        """A line on a run without news."""
        self.console.print(Text(silence(trial, seconds, replaced=replaced)), soft_wrap=True)

    def finished(self, trial: Trial, outcome: Outcome | None, message: str) -> None:
        """The run and what it came to."""
        self.pace.done += 1
        line = f"[{self.pace.done}/{self.pace.total}] {describe(trial)}: {result(outcome, message)}"
        self.console.print(Text(f"{line}  {self.pace.left()}".rstrip()), soft_wrap=True)


class ProgressDisplay:
    """A bar for the round and a line for each run at work."""

    def __init__(self, console: Console) -> None:
        self.pace = Pace()
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
        """The bar starts over."""
        self.pace.start(to_train)
        self.at_work.clear()
        self.bar.reset(
            self.task, total=max(1, to_train), completed=0 if to_train else 1, description=printable(name), left=""
        )
        self._show()

    def progress(self, trial: Trial, step: int, loss: float) -> None:
        """The line of one run."""
        self.at_work[trial] = f"  {describe(trial)}: step {step}, loss {loss:.3f}"
        self._show()

    def silent(self, trial: Trial, seconds: float, replaced: bool) -> None:
        """A line above the bar on a run without news."""
        self.live.console.print(Text(silence(trial, seconds, replaced=replaced)))

    def finished(self, trial: Trial, outcome: Outcome | None, message: str) -> None:
        """The bar advances."""
        self.pace.done += 1
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


def describe(trial: Trial) -> str:
    """'qk_norm at LR 0.0312, seed 0'."""
    return f"{printable(trial.arm)} at LR {trial.learning_rate:.3g}, {trial.seeds_named}"


def silence(trial: Trial, seconds: float, *, replaced: bool) -> str:
    """What is said of a run without news."""
    done = "its worker is replaced" if replaced else "it may be stuck"
    return f"{describe(trial)}: no step for {seconds:.0f} s, {done}"


def result(outcome: Outcome | None, message: str) -> str:
    """'loss 2.153 in 7.1 s', or why there is no outcome."""
    if outcome is None:
        return f"no outcome: {message}"
    stopped = f" (stopped: {outcome.stopped})" if outcome.stopped else ""
    return f"loss {outcome.final_loss:.3f} in {outcome.seconds:.1f} s{stopped}"
