"""The command line: ``trimtab study``, ``run``, ``report``, ``inspect`` and ``methods``, with documented exit codes."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text
from typing_extensions import override

from trimtab import __version__
from trimtab.config import ConfigError, Raw, apply_settings, load_toml, printable, unknown

OK = 0
INTERNAL = 1
BAD_CONFIG = 2
NO_OUTCOMES = 10
DAMAGED = 30
LOCKED = 31
STORAGE = 32
OUT_OF_MEMORY = 33
PREEMPTED = 75
INTERRUPTED = 130
READER_LEFT = 141  # the exit code of a program that SIGPIPE ended
WIDTH_OF_FILES = 175
NO_MEMORY = "out of memory; use fewer --workers or a smaller model"
ALLOCATION = ("can't allocate memory", "not enough memory", "CUDA out of memory")
EXIT_CODES = """exit codes:
  0   finished
  1   internal error: always a bug, please report it
  2   bad command or config
  10  study finished, but some trials have no outcome
  30  a stored file is damaged
  31  another process works on the study folder
  32  storage is full, read-only or failing
  33  out of memory
  75  stopped by SIGTERM; run the same command again to continue
  130 interrupted; run the same command again to continue
  141 the reader of the output closed the pipe, as in 'trimtab study ... | head'"""


class PreemptedError(BaseException):
    """The process received SIGTERM."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        signal.signal(signal.SIGTERM, _preempt)
        return _run_command(_parser().parse_args(arguments))
    except PreemptedError:
        return _complain("stopped by SIGTERM; run the same command again to continue", PREEMPTED)
    except KeyboardInterrupt:
        return _complain("interrupted; run the same command again to continue", INTERRUPTED)


def _run_command(options: argparse.Namespace) -> int:
    console = _Output(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_FILES  # a file has no width; the default of 80 columns would wrap the table
    # Imported here, so that --help and a wrong command respond immediately. None of these modules imports torch.
    from trimtab.data import CorpusError
    from trimtab.registry import CatalogueError
    from trimtab.run.files import IntegrityError
    from trimtab.study.lock import StudyLockedError

    try:
        return int(options.command(options, console))
    except (ConfigError, CorpusError, CatalogueError) as error:
        return _complain(str(error), BAD_CONFIG)
    except IntegrityError as error:
        return _complain(str(error), DAMAGED)
    except StudyLockedError as error:
        return _complain(str(error), LOCKED)
    except BrokenPipeError:
        return _reader_left(console)
    except OSError as error:  # including StorageError
        return _complain(_named(error), STORAGE)
    except MemoryError:
        return _complain(NO_MEMORY, OUT_OF_MEMORY)
    except Exception as error:
        if any(words in str(error) for words in ALLOCATION):  # torch raises RuntimeError when memory is exhausted
            return _complain(NO_MEMORY, OUT_OF_MEMORY)
        if os.environ.get("TRIMTAB_TRACEBACK"):
            raise
        line = f"internal error ({type(error).__name__}: {' '.join(str(error).split())[:500]})"
        return _complain(f"{line}; this is a bug: report it with the output under TRIMTAB_TRACEBACK=1", INTERNAL)


class _Output(Console):
    """A console that raises BrokenPipeError when its reader closes the pipe; rich would exit with code 1."""

    @override
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _reader_left(console: Console) -> int:
    """Exit without a message, because the reader of the output, such as ``head``, closed the pipe."""
    # Python would flush the buffered output at exit and print a traceback.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return READER_LEFT


def _named(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}: close other programs or raise the limit (ulimit -n), then run the same command again"
    return str(error)


def _complain(message: str, code: int) -> int:
    print(f"trimtab: {printable(message)}", file=sys.stderr)
    return code


def _preempt(_signal: int, _frame: FrameType | None) -> None:
    raise PreemptedError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trimtab",
        description="How far can the learning rate be pushed before training breaks, per method, with an interval.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    study = commands.add_parser("study", help="find the learning rate at which training breaks, for each arm")
    study.add_argument("file", nargs="?", metavar="FILE", help="a study file (TOML)")
    study.add_argument("--preset", metavar="NAME", help=f"a study that comes with trimtab: {', '.join(presets())}")
    study.add_argument(
        "--out", metavar="DIR", type=Path, help="the study folder; the same command continues an unfinished study"
    )
    study.add_argument(
        "--reuse",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="another study folder, from which finished runs with the same id are copied",
    )
    change = study.add_mutually_exclusive_group()
    change.add_argument(
        "--keep", action="store_true", help="keep stored runs of other data, code or numerics; the report says so"
    )
    change.add_argument(
        "--retrain", action="store_true", help="train stored runs of other data, code or numerics again"
    )
    study.add_argument(
        "--plan", action="store_true", help="print an estimate of runs, hours and disk space, and train nothing"
    )
    study.add_argument(
        "--workers", type=int, metavar="N", help="number of processes; 0 trains in this process (default: one per core)"
    )
    study.add_argument(
        "--workers-per-gpu", type=int, default=1, metavar="N", help="processes per GPU, if training.device is cuda"
    )
    study.set_defaults(command=_study)

    run = commands.add_parser("run", help="train one run and keep its weights")
    run.add_argument("file", metavar="FILE", help="a run file (TOML)")
    run.add_argument("--out", metavar="DIR", type=Path, default=Path("runs"), help="the folder that holds run folders")
    run.set_defaults(command=_run)
    report = commands.add_parser(
        "report", help="write table, page, JSON and CSV of a finished or unfinished study again"
    )
    report.add_argument("folder", metavar="DIR", type=Path)
    report.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="the folder to write to (default: the study folder); required with --set",
    )
    report.set_defaults(command=_report)

    for command in (study, run, report):
        command.add_argument(
            "--set",
            dest="settings",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change one setting, such as training.steps=200",
        )

    inspect = commands.add_parser("inspect", help="measure stored weights: TEV, sizes, spectra, outlier layers")
    inspect.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="a safetensors or GGUF file, a model folder or a run folder; several are compared in the given order",
    )
    inspect.add_argument(
        "--tev", action="store_true", help="only TEV, of every checkpoint in the given folders, against step or size"
    )
    inspect.add_argument("--embedding", metavar="NAME", help="the name of the token embedding, if it is unusual")
    inspect.add_argument("--json", metavar="FILE", type=Path, help="write all results to this file")
    inspect.add_argument("--html", metavar="FILE", type=Path, help="write charts to this file")
    inspect.set_defaults(command=_inspect)

    methods = commands.add_parser("methods", help="print the catalogue of methods: equation, paper, deviations")
    methods.add_argument("slug", nargs="?", help="print only this method")
    methods.set_defaults(command=_methods)
    return parser


def presets() -> list[str]:
    """The names of the studies that come with the package."""
    folder = files("trimtab") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _study(options: argparse.Namespace, console: Console) -> int:
    from trimtab.report import print_findings, write_report
    from trimtab.study.display import PlainDisplay, ProgressDisplay
    from trimtab.study.driver import run_study
    from trimtab.study.kind import read_any_study
    from trimtab.study.plan import plan
    from trimtab.study.study import executor_for

    raw, where = _study_tables(options)
    spec = read_any_study(apply_settings(raw, options.settings), where)
    if options.workers is not None and options.workers < 0:
        raise ConfigError("--workers must not be negative")
    if options.workers_per_gpu < 1:
        raise ConfigError("--workers-per-gpu must be at least 1")
    executor = executor_for(spec, options.workers, options.workers_per_gpu)
    if options.plan:
        console.print(Text(plan(spec, executor.capacity)))
        return OK
    if options.out is None:
        raise ConfigError("--out: name the study folder")
    display = ProgressDisplay(console) if console.is_terminal else PlainDisplay(console)
    with display if isinstance(display, ProgressDisplay) else nullcontext():
        on_change = "keep" if options.keep else "retrain" if options.retrain else "stop"
        findings = run_study(spec, options.out, executor, display, options.reuse, on_change=on_change)
    write_report(findings)
    print_findings(findings, console)
    console.print(Text(f"report: {options.out / 'report.html'}"))
    return NO_OUTCOMES if findings.evidence.errors else OK


def _study_tables(options: argparse.Namespace) -> tuple[Raw, str]:
    if (options.file is None) == (options.preset is None):
        raise ConfigError("give either a study FILE or --preset NAME")
    if options.file is not None:
        return load_toml(Path(options.file)), options.file
    if options.preset not in presets():
        raise ConfigError(f"--preset: {unknown(options.preset, presets())}")
    resource = files("trimtab") / "presets" / f"{options.preset}.toml"
    return load_toml(Path(str(resource))), f"preset {options.preset}"


def _run(options: argparse.Namespace, console: Console) -> int:
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


def _report(options: argparse.Namespace, console: Console) -> int:
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


def _inspect(options: argparse.Namespace, console: Console) -> int:
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


def _methods(options: argparse.Namespace, console: Console) -> int:
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


if __name__ == "__main__":
    sys.exit(main())
