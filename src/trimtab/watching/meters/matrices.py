"""Spectral norms of weight matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from trimtab.probe import MatrixProbe, Probe
from trimtab.sharding import is_sharded, local
from trimtab.watching.lanczos import largest_eigenvalues
from trimtab.watching.meter import Meter, Reading
from trimtab.watching.metric import Place
from trimtab.watching.pack import Pack
from trimtab.watching.subject import Subject

FIRST_STEPS = 40
STEPS = 16
FRESH = 0.3  # share of a random direction in the start, so that a singular value that has jumped up is seen


class MatrixMeter(Meter):
    """Finds the largest singular value of each matrix by Lanczos iteration from the direction of the last reading.

    Matrices in several pieces take an all-reduce a step, for all of them together.
    """

    name: ClassVar[str] = "matrices"
    serves: ClassVar[tuple[type[Probe], ...]] = (MatrixProbe,)

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.statistics = [probe for probe in probes if isinstance(probe, MatrixProbe)]
        self.places = [place for place, _ in subject.matrices]
        self.reserve("spectral", (len(self.places),))
        self.reserve("frobenius", (len(self.places),))
        self._directions: dict[Place, Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)  # the random streams of the training stay as they are

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        return super().takes(probes, subject) if subject.matrices else ()

    @override
    def after_step(self) -> None:
        ranks = self.subject.ranks
        whole = [find() for _, find in self.subject.matrices]
        pieces = [_finite(local(matrix)) for matrix in whole]
        shares = [ranks.share(matrix) for matrix in whole]
        frobenius = torch.stack([piece.square().sum() for piece in pieces])
        self.region("frobenius").copy_(frobenius * frobenius.new_tensor(shares))
        in_pieces = [index for index, matrix in enumerate(whole) if is_sharded(matrix) and not ranks.alone]

        def products(vectors: Sequence[Tensor]) -> Sequence[Tensor]:
            found = [piece.mT @ (piece @ vector) for piece, vector in zip(pieces, vectors, strict=True)]
            if in_pieces:
                packed = torch.cat([found[index] * shares[index] for index in in_pieces])
                dist.all_reduce(packed, group=ranks.group)
                sums = packed.split([len(found[index]) for index in in_pieces])
                for index, total in zip(in_pieces, sums, strict=True):
                    found[index] = total
            return found

        starts = [self._start(place, piece) for place, piece in zip(self.places, pieces, strict=True)]
        steps = STEPS if self._directions else FIRST_STEPS
        spectral, directions = largest_eigenvalues(products, starts, steps)
        self._directions = dict(zip(self.places, directions, strict=True))
        # Every process has found the same numbers.
        self.region("spectral").copy_(spectral if ranks.rank == 0 else torch.zeros_like(spectral))

    def _start(self, place: Place, matrix: Tensor) -> Tensor:
        fresh = F.normalize(torch.randn(matrix.shape[1], generator=self._generator), dim=0).to(matrix)
        before = self._directions.get(place)
        return fresh if before is None else before.to(matrix) + FRESH * fresh

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        spectral = self.region("spectral")
        frobenius = self.region("frobenius")
        counts = torch.ones_like(frobenius)
        return [
            Reading([place.metric(probe.slug) for place in self.places], probe.value(spectral, frobenius), counts)
            for probe in self.statistics
        ]


def _finite(matrix: Tensor) -> Tensor:
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    return torch.nan_to_num(wide, 0.0, 0.0, 0.0)
