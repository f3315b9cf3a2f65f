"""Format numbers as cells of a table."""

from __future__ import annotations

import math


def number(value: float | None, style: str) -> str:
    """Return a number as text; a dash for None and for a value that is not finite."""
    if value is None or not math.isfinite(value):
        return "-"
    return format(value, style).rstrip(".")
