"""Probes at work: the hooks, what they gather, and the rows that come of it."""

from trimtab.watching.attach import NoMatchError, watch
from trimtab.watching.publishing import EmptyReadingError
from trimtab.watching.watch import Watch, WatchError

__all__ = ["EmptyReadingError", "NoMatchError", "Watch", "WatchError", "watch"]
