"""The step that the optimizer takes: its size by parameter, and Adam's second moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from typing_extensions import override

from trimtab.probe import AdamProbe, Probe, TensorProbe, UpdateProbe
from trimtab.watching.meter import Meter, Reading
from trimtab.watching.metric import Place
from trimtab.watching.norms import add_rows, norm_probes, numbered, of_norms
from trimtab.watching.optimizer_step import OptimizerStep, has_moments
from trimtab.watching.pack import Pack
from trimtab.watching.sharding import local
from trimtab.watching.subject import Subject

TOTAL = Place("all_update", "model")
SQUARES = 2  # columns before the sums of the Adam probes: of the update, and of the weight


class UpdateMeter(Meter):
    """Reads what the optimizer step did to each parameter, right after the step."""

    name: ClassVar[str] = "updates"
    serves: ClassVar[tuple[type[Probe], ...]] = (TensorProbe, UpdateProbe, AdamProbe)

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        assert subject.optimizer is not None
        self.of_updates = [probe for probe in probes if isinstance(probe, UpdateProbe)]
        self.of_adam = [probe for probe in probes if isinstance(probe, AdamProbe)]
        self.step = OptimizerStep(subject.optimizer, self.of_adam, subject.preset.rows)
        # Squares of update and weight, Adam sums, entries that have Adam sums, entries.
        self.reserve("sums", (len(subject.parameters.places), SQUARES + len(self.of_adam) + 2))

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        if subject.optimizer is None:
            return ()
        taken = super().takes(probes, subject)
        kinds = (UpdateProbe, AdamProbe) if has_moments(subject.optimizer) else (UpdateProbe,)
        return [*norm_probes(taken), *(probe for probe in taken if isinstance(probe, kinds))]

    @override
    def before_step(self) -> None:
        self.step.before()

    @override
    def after_step(self) -> None:
        moved_of = self.step.after()
        parameters = self.subject.parameters
        stepped = [(place, p, moved_of[id(p)]) for place, p in parameters.placed() if id(p) in moved_of]
        if stepped:
            sums = torch.stack([moved.sums for _, _, moved in stepped])
            entries = [(float(local(p.detach()).numel()), moved.has_adam) for _, p, moved in stepped]
            counts = sums.new_tensor([(number * has_adam, number) for number, has_adam in entries])
            places = [place for place, _, _ in stepped]
            shares = [self.subject.ranks.share(p) for _, p, _ in stepped]
            rows = torch.cat((sums, counts), dim=1)
            add_rows(self.region("sums"), places, numbered(parameters.places), rows, shares)

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        places = self.subject.parameters.places
        sums = self.region("sums")
        updates = sums[:, 0]
        weights = sums[:, 1]
        with_adam = sums[:, -2]
        entries = sums[:, -1]
        norms = norm_probes(self.probes)
        total = torch.stack((updates.sum(), entries.sum()))[None]
        readings = of_norms([_update_of(place) for place in places], sums[:, [0, -1]], norms)
        readings += of_norms([TOTAL], total, norms)
        for probe in self.of_updates:
            keys = [place.metric(probe.slug) for place in places]
            readings.append(Reading(keys, probe.value(updates, weights), entries))
        for column, probe in enumerate(self.of_adam, start=SQUARES):
            keys = [place.metric(probe.slug) for place in places]
            readings.append(Reading(keys, probe.value(sums[:, column] / with_adam), with_adam))
        return readings


def _update_of(place: Place) -> Place:
    return Place(f"{place.what}_update", place.where)
