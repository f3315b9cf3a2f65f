"""The exit codes of the command line."""

from __future__ import annotations

OK = 0
INTERNAL = 1
BAD_CONFIG = 2
NO_OUTCOMES = 10
DAMAGED = 30
LOCKED = 31
STORAGE = 32
OUT_OF_MEMORY = 33
PREEMPTED = 75
STOPPED = 76
INTERRUPTED = 130
READER_LEFT = 141  # the exit code of a program that SIGPIPE ended

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
  76  stopped by 'trimtab stop'; run the same command again to continue
  130 interrupted; run the same command again to continue
  141 the reader of the output closed the pipe, as in 'trimtab study ... | head'"""
