"""The learning-rate axis of the charts of a study of limits."""

from __future__ import annotations

import math
from typing import Any

from trimtab.kinds.max_lr.findings import LimitFindings
from trimtab.report.chart import chart_layout


def lr_layout(findings: LimitFindings, *, x_title: str, height: int, y_title: str = "") -> dict[str, Any]:
    """Return a layout whose horizontal axis is log2 of the LR, with a tick at every power of two."""
    low, high = tested_range(findings)
    ticks = list(range(math.ceil(low), math.floor(high) + 1))
    layout = chart_layout(x_title, y_title, height)
    layout["xaxis"] |= {
        "tickvals": ticks,
        "ticktext": [f"2<sup>{tick}</sup>" for tick in ticks],
        "range": [low - 0.5, high + 0.5],
    }
    return layout


def tested_range(findings: LimitFindings) -> tuple[float, float]:
    """Return the lowest and the highest tested LR of all arms, as log2."""
    ranges = [arm.tested for arm in findings.arms.values()]
    return math.log2(min(low for low, _ in ranges)), math.log2(max(high for _, high in ranges))
