"""The errors that a caller of ``watch`` can meet."""

from __future__ import annotations


class WatchError(RuntimeError):
    """Probes cannot do what is asked; nothing was changed."""


class NoMatchError(LookupError):
    """A pattern matches nothing that can be watched; nothing was changed."""


class EmptyReadingError(RuntimeError):
    """A reading was due, but no tensor passed the hooks."""


class NotReadableError(RuntimeError):
    """A meter cannot read this model, for example because its parameters are sharded."""
