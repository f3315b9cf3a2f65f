"""Format numbers as cells of a table."""

from __future__ import annotations

import math


def number(value: float | None, style: str) -> str:
    """Return a number as text; a dash for None and for a value that is not finite."""
    if value is None or not math.isfinite(value):
        return "-"
    return format(value, style).rstrip(".")


def duration(seconds: float | None) -> str:
    """Return a time as '2 h 05 min', '3 min' or '40 s'; a dash for None."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
