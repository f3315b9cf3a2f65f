"""Norms, or all moments, of weights by role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from typing_extensions import override

from trimtab.probe import NUM_SUMS, Moments, Probe, TensorProbe
from trimtab.sharding import local
from trimtab.watching.meter import Meter, Reading
from trimtab.watching.norms import NUM_COLUMNS, add_rows, norms_of, numbered, of_norms
from trimtab.watching.pack import Pack
from trimtab.watching.subject import Subject


class WeightMeter(Meter):
    """Reads the effective weights after the step: their norms, or all moments if the preset has ``deep_weights``."""

    name: ClassVar[str] = "weights"
    serves: ClassVar[tuple[type[Probe], ...]] = (TensorProbe,)

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.statistics = [probe for probe in probes if isinstance(probe, TensorProbe)]
        self.places = list(dict.fromkeys(weight.place for weight in subject.weights))
        self.row_of = numbered(self.places)
        self.deep = subject.preset.deep_weights
        if self.deep:
            self.reserve("moments", (len(self.places), NUM_SUMS))
            self.reserve("largest", (len(self.places),), "max")
        else:
            self.reserve("norms", (len(self.places), NUM_COLUMNS))

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        kept = subject.preset.summary
        places = [w.place for w in subject.weights if kept is None or w.place.what in kept.tensors]
        return super().takes(probes, subject) if places else ()

    @override
    def after_step(self) -> None:
        places = [weight.place for weight in self.subject.weights]
        whole = [weight.effective() for weight in self.subject.weights]
        weights = [local(x) for x in whole]
        shares = [self.subject.ranks.share(x) for x in whole]
        if not self.deep:
            add_rows(self.region("norms"), places, self.row_of, norms_of(weights), shares)
            return
        for place, x, share in zip(places, weights, shares, strict=True):
            row = self.row_of[place]
            measured = self.subject.measure(x)
            self.region("moments")[row] += measured[:NUM_SUMS] * share
            largest = self.region("largest")[row]
            largest.copy_(torch.maximum(largest, measured[NUM_SUMS]))

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        if not self.deep:
            from_norm = [probe for probe in self.statistics if probe.from_norm]
            return of_norms(self.places, self.region("norms"), from_norm)
        moments = Moments.of(self.region("moments"), self.region("largest"))
        return [
            Reading(
                [place.metric(probe.slug) for place in self.places],
                probe.value(moments),
                moments.count + moments.non_finite,
            )
            for probe in self.statistics
        ]
