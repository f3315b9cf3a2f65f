"""Numbers as text cells."""

from __future__ import annotations

import math


def number(value: float | None, style: str) -> str:
    """A number, or a dash where there is none or it is not finite."""
    if value is None or not math.isfinite(value):
        return "-"
    return format(value, style).rstrip(".")
