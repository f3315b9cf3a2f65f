"""The limits so far by size, for ``trimtab status`` and ``trimtab studies``."""

from __future__ import annotations

from dataclasses import replace

from trimtab.kinds.max_lr.standings import standings as standings_of_one_size
from trimtab.kinds.max_lr_by_size.analysis import SizedFindings
from trimtab.study.kind import Standing


def standings(findings: SizedFindings) -> list[Standing]:
    """Return both edges of every arm at every size, as learning rates."""
    return [
        replace(standing, quantity=f"{standing.quantity}, {size}")
        for size, one in findings.by_size.items()
        for standing in standings_of_one_size(one)
    ]
