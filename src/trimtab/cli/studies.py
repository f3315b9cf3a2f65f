"""The commands that look at studies from outside: ``status``, ``stop`` and ``studies``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from trimtab.cli.exit_codes import NO_OUTCOMES, OK
from trimtab.config import ConfigError, printable

if TYPE_CHECKING:
    from trimtab.study.kind import Findings
    from trimtab.study.status import StudyStatus

FOLLOW_SECONDS = 5.0
FAILURES_SHOWN = 10


def status(options: argparse.Namespace, console: Console) -> int:
    """Show the state of a study, once or until its driver ends."""
    from trimtab.report.output import plain
    from trimtab.study.status import status_of

    while True:
        state, findings = status_of(options.folder)
        if options.json:
            print(json.dumps({"schema": 1, **plain(state)}, ensure_ascii=False, allow_nan=False), flush=True)
        else:
            if options.follow and console.is_terminal:
                console.clear()
            _show(state, findings, console)
        if not options.follow or state.state != "running":
            return NO_OUTCOMES if state.given_up else OK
        time.sleep(FOLLOW_SECONDS)


def stop(options: argparse.Namespace, console: Console) -> int:
    """Ask the driver of a study to stop, and wait for its end."""
    from trimtab.study.lock import ask_to_stop, is_driven
    from trimtab.study.stored import load_stored

    load_stored(options.folder)  # refuses a folder that holds no study
    driver = ask_to_stop(options.folder)
    if driver is None:
        console.print(Text(f"no process works on {options.folder}{_cancel_orphans(options.folder)}"), soft_wrap=True)
        return OK
    deadline = time.monotonic() + options.timeout
    while is_driven(options.folder):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"process {driver.pid} on {driver.host} has not stopped within {options.timeout:g} s; it stops when "
                "the run that it trains itself ends, or end it with Ctrl-C or SIGTERM there"
            )
        time.sleep(0.2)
    console.print(Text(f"stopped: process {driver.pid} on {driver.host}; the same command continues the study"))
    return OK


def _cancel_orphans(folder: Path) -> str:
    """Cancel the jobs of a driver that died; returns what was done, in words."""
    from trimtab.study.executors import read_executor
    from trimtab.study.executors.batch.chunk import DESK
    from trimtab.study.executors.batch.submissions import load_batches
    from trimtab.study.lease import read_driver
    from trimtab.study.lock import StudyLock
    from trimtab.study.stored import load_stored

    batches = load_batches(folder / DESK)
    driver = read_driver(folder)
    if not batches or driver is None:
        return ""
    config = read_executor(dict(driver.executor), f"{folder}: the executor of the last driver")
    with StudyLock(folder), config.start(load_stored(folder).spec, folder) as executor:
        executor.cancel()
    count = sum(len(batch.submissions) for batch in batches)
    return f"; {count} jobs that a driver left behind are cancelled"


def studies(options: argparse.Namespace, console: Console) -> int:
    """List and compare several studies."""
    from trimtab.report.output import json_text
    from trimtab.report.studies import comparison, overview, studies_json, studies_page
    from trimtab.report.terminal import print_sections
    from trimtab.run.files import write_whole
    from trimtab.study.status import status_of

    states = [status_of(folder)[0] for folder in options.folders]
    print_sections("trimtab", [overview(states), comparison(states)], console)
    for file, text in (
        (options.json, lambda: json_text(studies_json(states))),
        (options.html, lambda: studies_page(states)),
    ):
        if file is not None:
            write_whole(file, text())
            console.print(Text(f"written: {file}"))
    return OK


def _show(state: StudyStatus, findings: Findings, console: Console) -> None:
    from trimtab.report import print_findings
    from trimtab.report.text import duration

    lines = [f"study '{state.name}' ({state.kind}) in {state.folder}: {state.state}"]
    if state.driver is not None:
        executor = ", ".join(state.driver.executor) or "unknown"
        lines.append(f"driver: process {state.driver.pid} on {state.driver.host}, executor {executor}")
        lines.append(f"now: {state.driver.round}")
    lines.append(
        f"runs: {state.finished} finished, {state.running} running, {state.waiting} waiting, "
        f"{state.given_up} without outcome; at most {state.most_runs} in all"
    )
    if state.state == "running":
        lines.append(
            f"time left: {duration(state.round_seconds_left)} for the runs asked for so far, at most "
            f"{duration(state.most_seconds_left)} for the whole study"
        )
    for run in state.at_work:
        loss = "not finite" if run.loss is None else f"{run.loss:.3f}"
        lines.append(f"  {run.trial}: step {run.step} of {run.steps}, loss {loss}, {run.seconds_since:.0f} s ago")
    if state.queue is not None:
        lines += [f"queue: {count} jobs wait ({reason})" for reason, count in state.queue.waiting.items()]
        if state.queue.refusal:
            lines.append(f"queue: the last submission was refused and is tried again: {state.queue.refusal}")
    for run in state.failures[:FAILURES_SHOWN]:
        ended = "given up" if run.given_up else "tried again"
        lines.append(f"failed: {run.trial}: {run.cause} ({run.attempts} errors, {run.kills} kills, {ended})")
    if len(state.failures) > FAILURES_SHOWN:
        lines.append(f"failed: {len(state.failures) - FAILURES_SHOWN} further runs; --json lists all")
    for line in lines:
        console.print(Text(printable(line)), soft_wrap=True)
    if state.finished:
        print_findings(findings, console)
