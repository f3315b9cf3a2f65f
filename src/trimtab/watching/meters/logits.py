"""Statistics of the output logits of each token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from trimtab.probe import LogitProbe, Probe, sample_rows
from trimtab.watching.meter import Meter, Reading
from trimtab.watching.metric import Place
from trimtab.watching.pack import Pack
from trimtab.watching.subject import LOGITS, Subject


class LogitMeter(Meter):
    """Averages one number per row of logits; numbers that are not finite are left out of the average."""

    name: ClassVar[str] = "logits"
    serves: ClassVar[tuple[type[Probe], ...]] = (LogitProbe,)

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.statistics = [probe for probe in probes if isinstance(probe, LogitProbe)]
        self.reserve("sums", (len(self.statistics), 3))  # sum of the finite numbers, their count, count of all

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        return super().takes(probes, subject) if LOGITS in subject.forward else ()

    @override
    def sees(self) -> Collection[Place]:
        return (LOGITS,)

    @override
    def see(self, place: Place, x: Tensor) -> None:
        sample = sample_rows(x, self.subject.preset.rows)
        sums = self.region("sums")
        for index, probe in enumerate(self.statistics):
            numbers = probe.rows(sample).to(sums.dtype)
            finite = numbers.isfinite()
            counts = torch.stack((finite.sum(), (finite | True).sum())).to(sums.dtype)
            sums[index] += torch.cat((torch.where(finite, numbers, 0.0).sum()[None], counts))

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        readings: list[Reading] = []
        for index, probe in enumerate(self.statistics):
            total, finite, count = self.region("sums")[index, None].unbind(1)
            readings.append(Reading([LOGITS.metric(probe.slug)], total / finite, count))
        return readings
