"""A process that has imported torch once, and from which workers are forked.

A worker of its own interpreter spends two to four seconds on that import, and has its own copy of what it loads. The
module imports nothing slow: the command line starts the server before it imports torch itself, so that both go on at
the same time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
IMPORTED = "trimtab.study.executors.processes"
ATTEMPTS = 20
LONGEST_FOLDER = 70  # the path of a socket has at most 107 bytes, of which multiprocessing adds about 32 to a folder


def context() -> ForkServerContext | SpawnContext:
    """How workers are started: forked from the server on Linux, each with an interpreter of its own elsewhere.

    On macOS a fork after an import of numpy or torch may crash. A temporary folder with a long path has no room for
    the socket of the server.
    """
    if sys.platform == "linux" and len(os.fsencode(tempfile.gettempdir())) <= LONGEST_FOLDER:
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def start() -> None:
    """Start the server, unless it runs, without waiting for it. It ends with this process."""
    if context().get_start_method() != "forkserver":
        return
    from multiprocessing import forkserver

    multiprocessing.set_forkserver_preload([IMPORTED])
    with starting():
        forkserver.ensure_running()


def launch(process: BaseProcess) -> None:
    """Start a process; once more if the server ended a moment ago and multiprocessing has not noticed.

    Raises:
        ConnectionError: if the server cannot be reached.
    """
    for attempt in range(ATTEMPTS):
        try:
            with starting():
                process.start()
            break
        except (ConnectionError, EOFError) as error:
            if attempt == ATTEMPTS - 1:
                raise ConnectionError(f"the fork server cannot be reached ({error})") from error
            time.sleep(0.1)


@contextlib.contextmanager
def starting() -> Generator[None]:
    """Settings that a new process inherits: one thread for numerical libraries, and SIGINT blocked.

    Numerical libraries read their number of threads at import; a run sets its own later. The driver handles Ctrl-C.
    """
    resource_tracker.ensure_running()  # its start unblocks SIGINT whatever the mask was before
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
