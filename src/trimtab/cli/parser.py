"""The arguments of every command."""

from __future__ import annotations

import argparse
from pathlib import Path

from trimtab import __version__
from trimtab.cli import commands, studies
from trimtab.cli.exit_codes import EXIT_CODES


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``command`` to its function."""
    parser = argparse.ArgumentParser(
        prog="trimtab",
        description="How far can the learning rate be pushed before training breaks, per method, with an interval.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    study = subparsers.add_parser("study", help="find the learning rate at which training breaks, for each arm")
    study.add_argument("file", nargs="?", metavar="FILE", help="a study file (TOML)")
    study.add_argument(
        "--preset", metavar="NAME", help=f"one of the studies of trimtab: {', '.join(commands.presets())}"
    )
    study.add_argument(
        "--out", metavar="DIR", type=Path, help="the study folder; the same command continues an unfinished study"
    )
    study.add_argument(
        "--reuse",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="another study folder or an export, from which finished runs with the same id are taken",
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
        "--hardware",
        metavar="GPU",
        help="with --plan: estimate for a GPU that need not be here, such as h100 or a100, instead of timing steps",
    )
    study.add_argument(
        "--executor",
        metavar="NAME",
        help="what carries out the runs: processes (default), inline, slurm, ray, or a TOML file with a table of one",
    )
    study.add_argument(
        "--option",
        dest="executor_options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the executor, such as partition=gpu",
    )
    study.add_argument(
        "--workers", type=int, metavar="N", help="number of processes; 0 trains in this process (default: one per core)"
    )
    study.add_argument(
        "--workers-per-gpu", type=int, metavar="N", help="processes per GPU, if training.device is cuda (default 1)"
    )
    study.add_argument(
        "--confirm",
        type=int,
        nargs="?",
        const=3,
        metavar="N",
        help="at the end, check the limits of the winner and the reference with N unseen seeds (default 3)",
    )
    study.set_defaults(command=commands.study)

    run = subparsers.add_parser("run", help="train one run and keep its weights")
    run.add_argument("file", metavar="FILE", help="a run file (TOML)")
    run.add_argument("--out", metavar="DIR", type=Path, default=Path("runs"), help="the folder that holds run folders")
    run.set_defaults(command=commands.run)
    report = subparsers.add_parser(
        "report", help="write table, page, JSON and CSV of a finished or unfinished study again"
    )
    report.add_argument("folder", metavar="DIR", type=Path)
    report.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="the folder to write to (default: the study folder); required with --set",
    )
    report.set_defaults(command=commands.report)

    export = subparsers.add_parser(
        "export", help="write a study, finished or not, into a small folder for a repository or another machine"
    )
    export.add_argument("folder", metavar="DIR", type=Path, help="the study folder")
    export.add_argument("target", metavar="TARGET", type=Path, help="the folder to write to")
    export.set_defaults(command=commands.export)

    for command in (study, run, report):
        command.add_argument(
            "--set",
            dest="settings",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change one setting, such as training.steps=200",
        )

    inspect = subparsers.add_parser("inspect", help="measure stored weights: TEV, sizes, spectra, outlier layers")
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
    inspect.set_defaults(command=commands.inspect)

    _add_studies(subparsers)
    methods = subparsers.add_parser("methods", help="print the catalogue of methods: equation, paper, deviations")
    methods.add_argument("slug", nargs="?", help="print only this method")
    methods.set_defaults(command=commands.methods)
    return parser


def _add_studies(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands that look at studies from outside."""
    status = subparsers.add_parser("status", help="show the state of a study: runs, limits so far, time left, failures")
    status.add_argument("folder", metavar="DIR", type=Path, help="the study folder")
    status.add_argument("--follow", action="store_true", help="show it again every few seconds until the driver ends")
    status.add_argument("--json", action="store_true", help="print one line of JSON")
    status.set_defaults(command=studies.status)

    stop = subparsers.add_parser("stop", help="end a running study from elsewhere; nothing that is finished is lost")
    stop.add_argument("folder", metavar="DIR", type=Path, help="the study folder")
    stop.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="how long to wait for its end (default 120)"
    )
    stop.set_defaults(command=studies.stop)

    several = subparsers.add_parser("studies", help="list and compare several studies in one table and page")
    several.add_argument("folders", nargs="+", metavar="DIR", type=Path, help="study folders or exports")
    several.add_argument("--json", metavar="FILE", type=Path, help="write all states to this file")
    several.add_argument("--html", metavar="FILE", type=Path, help="write the tables as a page to this file")
    several.set_defaults(command=studies.studies)
