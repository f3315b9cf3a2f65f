"""What each command does. Slow modules are imported inside, so that --help and a wrong command respond immediately."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from trimtab.cli.exit_codes import NO_OUTCOMES, OK
from trimtab.config import ConfigError, Raw, apply_settings, load_toml, unknown
from trimtab.study import fork_server

if TYPE_CHECKING:
    from trimtab.study.executors import ExecutorConfig
    from trimtab.study.hardware import Hardware


def presets() -> list[str]:
    """The names of the studies that come with the package."""
    folder = files("trimtab") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


@contextmanager
def _rare_collections() -> Generator[None]:
    """Collect cyclic garbage rarely: imports make half a million objects that stay, and take a seventh less time."""
    before = gc.get_threshold()
    gc.set_threshold(50_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def study(options: argparse.Namespace, console: Console) -> int:
    """Carry out, resume, extend or plan a study."""
    raw, where = study_tables(options)
    if options.out is not None and options.executor is None and options.workers != 0 and not options.plan:
        fork_server.start()  # imports torch while this process does
    with _rare_collections():
        from trimtab.study.kind import read_any_study

        confirm = [] if options.confirm is None else [f"search.confirm={options.confirm}"]
        spec = read_any_study(apply_settings(raw, [*options.settings, *confirm]), where)
        executor = executor_of(options)
        if options.plan:
            from trimtab.study.plan import plan

            gpu = hardware_of(options.hardware)
            workers = 1 if gpu is not None else executor.start(spec, options.out or Path()).capacity
            console.print(Text(plan(spec, workers, gpu)), soft_wrap=True)
            return OK
        if options.hardware is not None:
            raise ConfigError("--hardware: use it together with --plan")
        if options.out is None:
            raise ConfigError("--out: name the study folder")
        from trimtab.report import print_findings, write_report
        from trimtab.study.display import PlainDisplay, ProgressDisplay
        from trimtab.study.driver import run_study

    display = (ProgressDisplay if console.is_terminal else PlainDisplay)(console, spec.most_runs())
    with display if isinstance(display, ProgressDisplay) else nullcontext():
        on_change = "keep" if options.keep else "retrain" if options.retrain else "stop"
        findings = run_study(spec, options.out, executor, display, options.reuse, on_change=on_change)
    write_report(findings)
    print_findings(findings, console)
    console.print(Text(f"report: {options.out / 'report.html'}"))
    return NO_OUTCOMES if findings.evidence.errors else OK


def executor_of(options: argparse.Namespace) -> ExecutorConfig:
    """The executor that the options name; processes on this machine by default.

    Raises:
        ConfigError: for an unknown executor, an unknown or refused option, or options of two executors.
    """
    from trimtab.study.executors import catalogue, read_executor
    from trimtab.study.study import default_executor

    workers = {"--workers": options.workers, "--workers-per-gpu": options.workers_per_gpu}
    if options.executor is None and not options.executor_options:
        if options.workers is not None and options.workers < 0:
            raise ConfigError("--workers must not be negative")
        if options.workers_per_gpu is not None and options.workers_per_gpu < 1:
            raise ConfigError("--workers-per-gpu must be at least 1")
        return default_executor(options.workers, options.workers_per_gpu or 1)
    given = [name for name, value in workers.items() if value is not None]
    if given:
        raise ConfigError(f"{given[0]}: cannot be used with --executor or --option; use --option workers=N")
    name = options.executor or "processes"
    raw: Raw = {name: {}}
    if name.endswith(".toml"):
        raw = load_toml(Path(name))
    elif name not in catalogue():
        raise ConfigError(f"--executor: {unknown(name, list(catalogue()))}")
    slug = next(iter(raw), "")
    return read_executor(apply_settings(raw, [f"{slug}.{option}" for option in options.executor_options]), "--executor")


def hardware_of(name: str | None) -> Hardware | None:
    """The GPU of that name; None without a name.

    Raises:
        ConfigError: for an unknown name.
    """
    from trimtab.study.hardware import GPUS

    if name is not None and name not in GPUS:
        raise ConfigError(f"--hardware: {unknown(name, list(GPUS))}")
    return GPUS[name] if name is not None else None


def study_tables(options: argparse.Namespace) -> tuple[Raw, str]:
    """The tables of the study file or the preset, and its name for errors."""
    if (options.file is None) == (options.preset is None):
        raise ConfigError("give either a study FILE or --preset NAME")
    if options.file is not None:
        return load_toml(Path(options.file)), options.file
    if options.preset not in presets():
        raise ConfigError(f"--preset: {unknown(options.preset, presets())}")
    resource = files("trimtab") / "presets" / f"{options.preset}.toml"
    return load_toml(Path(str(resource))), f"preset {options.preset}"


def run(options: argparse.Namespace, console: Console) -> int:
    """Train one run and keep its weights."""
    from trimtab.run.check import check_run
    from trimtab.run.execute import execute
    from trimtab.run.reading import read_run

    spec = read_run(apply_settings(load_toml(Path(options.file)), options.settings), options.file)
    every = max(1, spec.protocol.training.steps // 20)

    def progress(step: int, loss: float) -> None:
        if step and step % every == 0:
            console.print(Text(f"step {step}: training loss {loss:.4f}"))

    check_run(spec, spec.protocol.data.load(), options.file)
    options.out.mkdir(parents=True, exist_ok=True)
    outcome = execute(spec, options.out, progress=progress, keep_weights=True)
    ended = f"stopped at step {outcome.steps} ({outcome.stopped})" if outcome.stopped else "finished"
    console.print(Text(f"{ended}; final held-out loss {outcome.final_loss:.4f} nats"))
    console.print(Text(f"run folder: {options.out / outcome.run_id}"))
    return OK


def report(options: argparse.Namespace, console: Console) -> int:
    """Write the report of a stored study."""
    from trimtab.report import print_findings, write_report
    from trimtab.study.stored import load_stored

    if options.settings and options.out is None:
        raise ConfigError(
            "--out: name a folder for a report with other settings; the report in the study folder is not changed"
        )
    findings = load_stored(options.folder, options.settings).findings()
    target = options.out or options.folder
    write_report(findings, target)
    print_findings(findings, console)
    console.print(Text(f"report: {target / 'report.html'}"))
    return OK


def export(options: argparse.Namespace, console: Console) -> int:
    """Write the exported form of a study."""
    from trimtab.study.export import export as write_export

    findings = write_export(options.folder, options.target)
    made = sum(run.outcome is not None for run in findings.runs)
    state = "finished" if findings.evidence.complete else "unfinished"
    console.print(Text(f"{made} runs of the {state} study are written to {options.target}"))
    return OK


def inspect(options: argparse.Namespace, console: Console) -> int:
    """Measure stored weights."""
    from trimtab.inspection.checkpoints import open_checkpoint
    from trimtab.inspection.show import as_json, show, show_tev, show_trajectory
    from trimtab.inspection.summary import summarise
    from trimtab.inspection.tev import tev_points

    if options.tev:
        points = tev_points(options.paths, options.embedding)
        show_tev(points, console)
        return _written(options, console, as_json(points), lambda: _pages().tev_page(points))
    summaries = [summarise(open_checkpoint(path), options.embedding) for path in options.paths]
    for summary in summaries:
        show(summary, console)
    if len(summaries) > 1:
        show_trajectory(summaries, console)
    return _written(options, console, as_json(summaries), lambda: _pages().page(summaries))


def _pages() -> Any:
    from trimtab.inspection import page  # imports the charts of the report, and so torch

    return page


def _written(options: argparse.Namespace, console: Console, text: str, page: Callable[[], str]) -> int:
    from trimtab.run.files import write_whole

    if options.json is not None:
        write_whole(options.json, text)
        console.print(Text(f"written: {options.json}"))
    if options.html is not None:
        write_whole(options.html, page())
        console.print(Text(f"written: {options.html}"))
    return OK


def methods(options: argparse.Namespace, console: Console) -> int:
    """Print the catalogue of methods."""
    from trimtab.methods import catalogue

    known = catalogue()
    if options.slug is not None and options.slug not in known:
        raise ConfigError(f"methods: {unknown(options.slug, known)}")
    for slug, method in known.items():
        if options.slug in (None, slug):
            console.print(Text(_described(slug, method)), soft_wrap=True)
    return OK


def _described(slug: str, method: Any) -> str:
    source = method.source
    parts = ", ".join(f"{type(i).slug()}" for i in method.interventions) or "nothing"
    lines = [
        slug,
        f"  equation:   {source.equation}",
        f"  installs:   {parts}",
        f"  paper:      {source.title}{f' (arXiv {source.arxiv})' if source.arxiv else ''}, {source.place}",
    ]
    lines += [f"  deviation:  {deviation}" for deviation in source.deviations]
    return "\n".join(lines) + "\n"
