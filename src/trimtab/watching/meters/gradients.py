"""Norms of the gradients of all parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from typing_extensions import override

from trimtab.probe import Probe, TensorProbe
from trimtab.sharding import local
from trimtab.watching.meter import Meter, Reading
from trimtab.watching.metric import Place
from trimtab.watching.norms import NUM_COLUMNS, add_rows, norm_probes, norms_of, numbered, of_norms
from trimtab.watching.pack import Pack
from trimtab.watching.parameters import KeyedParameters
from trimtab.watching.ranks import Ranks
from trimtab.watching.subject import Subject, gradient_of

TOTAL = Place("all_grad", "model")


class GradientMeter(Meter):
    """Reads the gradients as they are when they are complete, and of all together."""

    name: ClassVar[str] = "gradients"
    serves: ClassVar[tuple[type[Probe], ...]] = (TensorProbe,)

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.reserve("norms", (len(subject.parameters.places), NUM_COLUMNS))

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        return norm_probes(super().takes(probes, subject))

    @override
    def read_gradients(self) -> None:
        norms = self.region("norms")
        norms.zero_()  # of an earlier closure, or of an earlier call of see_gradients
        add_gradient_norms(norms, self.subject.parameters, self.subject.ranks)

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        probes = norm_probes(self.probes)
        norms = self.region("norms")
        places = [gradient_of(place) for place in self.subject.parameters.places]
        total = norms.sum(0, keepdim=True)
        return [*of_norms(places, norms, probes), *of_norms([TOTAL], total, probes)]


def add_gradient_norms(norms: torch.Tensor, parameters: KeyedParameters, ranks: Ranks) -> None:
    """Add what ``norms_of`` gives of each gradient to the rows (N, 3) of the places of the parameters."""
    with_gradient = [(place, p, p.grad) for place, p in parameters.placed() if p.grad is not None]
    if with_gradient:
        places = [place for place, _, _ in with_gradient]
        rows = norms_of([local(gradient.detach()) for _, _, gradient in with_gradient])
        shares = [ranks.share(p) for _, p, _ in with_gradient]
        add_rows(norms, places, numbered(parameters.places), rows, shares)
