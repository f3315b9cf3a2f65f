"""The command line: ``trimtab study``, ``run``, ``report``, ``inspect`` and ``methods``, with documented exit codes."""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from rich.console import Console
from typing_extensions import override

from trimtab.cli.commands import presets
from trimtab.cli.exit_codes import (
    BAD_CONFIG,
    DAMAGED,
    EXIT_CODES,
    INTERNAL,
    INTERRUPTED,
    LOCKED,
    NO_OUTCOMES,
    OK,
    OUT_OF_MEMORY,
    PREEMPTED,
    READER_LEFT,
    STOPPED,
    STORAGE,
)
from trimtab.cli.parser import make_parser
from trimtab.config import ConfigError, printable

__all__ = [
    "BAD_CONFIG",
    "DAMAGED",
    "EXIT_CODES",
    "INTERNAL",
    "INTERRUPTED",
    "LOCKED",
    "NO_OUTCOMES",
    "OK",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "READER_LEFT",
    "STOPPED",
    "STORAGE",
    "main",
    "make_parser",
    "presets",
]

WIDTH_OF_FILES = 175
NO_MEMORY = "out of memory; use fewer --workers or a smaller model"
ALLOCATION = ("can't allocate memory", "not enough memory", "CUDA out of memory")


class PreemptedError(BaseException):
    """The process received SIGTERM."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # The interpreter would look for cyclic garbage before it ends, among half a million objects of imported modules.
    atexit.register(gc.freeze)
    try:
        signal.signal(signal.SIGTERM, _preempt)
        return _run_command(make_parser().parse_args(arguments))
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
    from trimtab.study.lease import StudyLockedError
    from trimtab.study.lock import StudyStoppedError

    try:
        return int(options.command(options, console))
    except (ConfigError, CorpusError, CatalogueError) as error:
        return _complain(str(error), BAD_CONFIG)
    except IntegrityError as error:
        return _complain(str(error), DAMAGED)
    except StudyLockedError as error:
        return _complain(str(error), LOCKED)
    except StudyStoppedError as error:
        return _complain(str(error), STOPPED)
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
