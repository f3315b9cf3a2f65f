"""Statistics of the output logits of each token, from sampled positions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from trimtab.probe import LogitProbe, Probe
from trimtab.watching.meter import Meter, Reading
from trimtab.watching.metric import Place
from trimtab.watching.pack import Pack
from trimtab.watching.sampling import NUM_SUMS, Sampler, estimate, sums_of
from trimtab.watching.subject import LOGITS, Subject


class LogitMeter(Meter):
    """Averages one number per row of logits; numbers that are not finite are left out of the average."""

    name: ClassVar[str] = "logits"
    serves: ClassVar[tuple[type[Probe], ...]] = (LogitProbe,)

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.statistics = [probe for probe in probes if isinstance(probe, LogitProbe)]
        self.sampler = Sampler(lambda: subject.ranks.rank)
        self.reserve("sums", (len(self.statistics), NUM_SUMS))

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        return super().takes(probes, subject) if LOGITS in subject.forward else ()

    @override
    def sees(self) -> Collection[Place]:
        return (LOGITS,)

    @override
    def see(self, place: Place, x: Tensor) -> None:
        batch = x if x.ndim == 3 else x.reshape(1, -1, x.shape[-1])
        valid = self.subject.padding.rows_of(x)
        wanted = self.subject.preset.logit_rows
        num_rows = None if wanted is None else max(2, wanted // len(batch))
        marked = None if valid is None else valid.reshape(batch.shape[:2])
        sample = self.sampler.draw(len(batch), batch.shape[1], num_rows, marked, x.device)
        rows = batch.take_along_dim(sample.rows[..., None], 1)
        sums = self.region("sums")
        for index, probe in enumerate(self.statistics):
            numbers = probe.rows(rows.flatten(0, 1)).view(sample.rows.shape)
            finite = numbers.isfinite()
            counted = finite & (sample.weights > 0)
            sums[index] += sums_of(torch.where(counted, numbers, 0.0)[:, None], counted[:, None], sample)[:, 0]

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        readings: list[Reading] = []
        for index, probe in enumerate(self.statistics):
            mean, error, count = estimate(self.region("sums")[index][:, None])
            looked_at = torch.ones_like(count)  # without a finite number the mean is NaN, and is written as such
            readings.append(Reading([LOGITS.metric(probe.slug)], mean, looked_at))
            readings.append(Reading([LOGITS.metric(f"{probe.slug}_se")], error, looked_at))
        return readings
