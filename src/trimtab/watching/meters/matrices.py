"""Spectral norms of weight matrices, by power iteration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from trimtab.probe import MatrixProbe, Probe
from trimtab.watching.meter import Meter, Reading
from trimtab.watching.metric import Place
from trimtab.watching.pack import Pack
from trimtab.watching.sharding import is_sharded, local
from trimtab.watching.subject import Subject

FIRST_ITERATIONS = 30


class MatrixMeter(Meter):
    """Follows the largest singular value of each matrix: 30 iterations at first, then one per reading."""

    name: ClassVar[str] = "matrices"
    serves: ClassVar[tuple[type[Probe], ...]] = (MatrixProbe,)

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.statistics = [probe for probe in probes if isinstance(probe, MatrixProbe)]
        self._directions: dict[Place, Tensor] = {}
        for place, matrix in subject.matrices:
            self.reserve(f"{place}/power", (matrix().shape[1],))
            self.reserve(f"{place}/frobenius", ())

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        return super().takes(probes, subject) if subject.matrices else ()

    @override
    def after_step(self) -> None:
        """One iteration on the rows of this process: W^T W u, whose parts add up over the processes."""
        for place, find in self.subject.matrices:
            whole = find()
            matrix = local(whole).float()
            if place not in self._directions or self._directions[place].device != matrix.device:
                self._directions[place] = _start(whole)
            u = self._directions[place]
            if self.subject.ranks.share(whole):
                self.region(f"{place}/power").copy_(matrix.mT @ (matrix @ u))
                self.region(f"{place}/frobenius").copy_(matrix.square().sum())

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        places = [place for place, _ in self.subject.matrices]
        moved = [self.region(f"{place}/power") for place in places]
        for place, vector in zip(places, moved, strict=True):
            self._directions[place] = F.normalize(vector, dim=0).float()
        spectral = torch.stack([vector.norm() for vector in moved])
        frobenius = torch.stack([self.region(f"{place}/frobenius") for place in places])
        return [
            Reading(
                [place.metric(probe.slug) for place in places],
                probe.value(spectral, frobenius),
                torch.ones_like(frobenius),
            )
            for probe in self.statistics
        ]

    @override
    def published(self, row: Mapping[str, float]) -> None:
        """Start again from a fresh direction where the row has a norm that is not finite."""
        for place in list(self._directions):
            norms = [row.get(str(place.metric(probe.slug)), 0.0) for probe in self.statistics]
            if not all(math.isfinite(norm) for norm in norms):
                del self._directions[place]


def _start(whole: Tensor) -> Tensor:
    matrix = (cast(Any, whole).full_tensor() if is_sharded(whole) else whole).float()
    # A separate generator: the random streams of the training run stay as they are.
    generator = torch.Generator().manual_seed(0)
    u = F.normalize(torch.randn(matrix.shape[1], generator=generator).to(matrix.device), dim=0)
    for _ in range(FIRST_ITERATIONS):
        u = F.normalize(matrix.mT @ (matrix @ u), dim=0)
    return u
