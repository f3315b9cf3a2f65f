"""Moments of the tensors and gradients that pass the points of a model, over every position that is no padding."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from trimtab.probe import NUM_SUMS, Moments, Probe, TensorProbe
from trimtab.watching.meter import Guard, Meter, Reading
from trimtab.watching.metric import Place
from trimtab.watching.norms import numbered
from trimtab.watching.pack import Pack
from trimtab.watching.subject import Subject


class TensorMeter(Meter):
    """Keeps one row of moments per place; every micro-batch adds to it."""

    name: ClassVar[str] = "tensors"
    serves: ClassVar[tuple[type[Probe], ...]] = (TensorProbe,)

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.places = _places(subject)
        self.row_of = numbered(self.places)
        self.statistics = [probe for probe in probes if isinstance(probe, TensorProbe)]
        self.high = any(probe.high for probe in self.statistics)
        self.reserve("moments", (len(self.places), NUM_SUMS))
        self.reserve("largest", (len(self.places),), "max")
        self._measured: list[tuple[int, Tensor]] = []

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        return super().takes(probes, subject) if _places(subject) else ()

    @override
    def begin(self, guard: Guard) -> Sequence[object]:
        self._measured = []
        return ()

    @override
    def sees(self) -> Collection[Place]:
        return self.row_of

    @override
    def see(self, place: Place, x: Tensor) -> None:
        kept, entries = self.subject.padding.left_out(x)
        self._measured.append((self.row_of[place], self.subject.measure(kept, high=self.high, entries=entries)))

    @override
    def see_gradient(self, place: Place, x: Tensor) -> None:
        self.see(place, x)

    @override
    def after_step(self) -> None:
        if self._measured:
            rows, measured = zip(*self._measured, strict=True)
            moments = self.region("moments")
            table = torch.stack(measured).to(moments)
            index = torch.tensor(rows, device=moments.device)
            moments.index_add_(0, index, table[:, :NUM_SUMS])
            self.region("largest").scatter_reduce_(0, index, table[:, NUM_SUMS], "amax")
        self._measured = []

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        moments = Moments.of(self.region("moments"), self.region("largest"))
        entries = moments.count + moments.non_finite
        return [
            Reading([place.metric(probe.slug) for place in self.places], probe.value(moments), entries)
            for probe in self.statistics
        ]


def _places(subject: Subject) -> list[Place]:
    summary = subject.preset.summary
    places = [*subject.forward, *subject.backward]
    return [place for place in places if summary is None or place.what in summary.tensors]
