"""Share the runs that phase 1 leaves to an arm between its two edges."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from trimtab.study.labels import Edge


@dataclass(slots=True)
class Allowance:
    """The runs that an arm may still make.

    Attributes:
        left: number of runs that phase 1 leaves.
        share: share of ``left`` of each edge; the shares sum to 1.
        probes: number of probes of an edge in a round; made whole or not at all, so that a larger cap repeats them.
        spent: number of probes of each edge so far.
    """

    left: int
    share: Mapping[Edge, float]
    probes: int
    spent: dict[Edge, int] = field(default_factory=dict[Edge, int])

    def next_edges(self, wide: Collection[Edge]) -> list[Edge]:
        """Return the edges that are probed in the next round, and count their probes.

        Args:
            wide: the edges whose interval is not narrow enough yet.
        """
        chosen: list[Edge] = []
        for edge in self.share:
            alone = len(wide) == 1
            allowed = self.left if alone else self._whole_rounds(self.share[edge] * self.left)
            fits = sum(self.spent.values()) + self.probes <= self.left
            if edge in wide and fits and (alone or self.spent.get(edge, 0) + self.probes <= allowed):
                self.spent[edge] = self.spent.get(edge, 0) + self.probes
                chosen.append(edge)
        return chosen

    def _whole_rounds(self, runs: float) -> int:
        return math.ceil(runs / self.probes) * self.probes
