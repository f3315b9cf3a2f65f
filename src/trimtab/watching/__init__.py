"""Probes at work: hooks on a model, the meters that they report to, and the rows that result.

``watch`` attaches probes. A new kind of probe comes with its own ``Meter``, which its class names in ``Probe.meter``.
"""

from trimtab.watching.attach import watch
from trimtab.watching.errors import EmptyReadingError, NoMatchError, NotReadableError, WatchError
from trimtab.watching.meter import Guard, Meter, Reading
from trimtab.watching.metric import MetricKey, Place
from trimtab.watching.subject import Subject
from trimtab.watching.watch import Watch

__all__ = [
    "EmptyReadingError",
    "Guard",
    "Meter",
    "MetricKey",
    "NoMatchError",
    "NotReadableError",
    "Place",
    "Reading",
    "Subject",
    "Watch",
    "WatchError",
    "watch",
]
