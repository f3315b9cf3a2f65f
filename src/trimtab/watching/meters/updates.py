"""The step that the optimizer takes: its size by parameter, and Adam's second moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from typing_extensions import override

from trimtab.probe import AdamProbe, Probe, TensorProbe, UpdateProbe
from trimtab.watching.meter import Guard, Meter, Reading
from trimtab.watching.metric import Place
from trimtab.watching.norms import add_rows, norm_probes, numbered, of_norms
from trimtab.watching.optimizer_step import NUM_OWN, Moved, OptimizerStep, has_moments
from trimtab.watching.pack import Pack
from trimtab.watching.subject import Subject

TOTAL = Place("all_update", "model")
COUNT = 2  # column of the entries whose update is finite; the next is that of the others


class UpdateMeter(Meter):
    """Reads what the optimizer step did to each parameter, right after the step."""

    name: ClassVar[str] = "updates"
    serves: ClassVar[tuple[type[Probe], ...]] = (TensorProbe, UpdateProbe, AdamProbe)

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.of_updates = [probe for probe in probes if isinstance(probe, UpdateProbe)]
        self.of_adam = [probe for probe in probes if isinstance(probe, AdamProbe)]
        self.steps = [OptimizerStep(optimizer, self.of_adam, fused=subject.fused) for optimizer in subject.optimizers]
        # Squares of update and weight, finite and other entries, Adam sums, entries that have Adam sums.
        self.reserve("sums", (len(subject.parameters.places), NUM_OWN + len(self.of_adam) + 1))
        self._moved: dict[int, Moved] = {}

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        if not subject.optimizers:
            return ()
        taken = super().takes(probes, subject)
        kinds = (UpdateProbe, AdamProbe) if any(map(has_moments, subject.optimizers)) else (UpdateProbe,)
        return [*norm_probes(taken), *(probe for probe in taken if isinstance(probe, kinds))]

    @override
    def begin(self, guard: Guard) -> Sequence[object]:
        self._moved = {}
        return ()

    @override
    def before_step(self) -> None:
        for step in self.steps:
            step.before()

    @override
    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        for step in self.steps:
            if step.optimizer is optimizer:
                self._moved |= step.after()

    @override
    def after_step(self) -> None:
        moved_of = self._moved
        parameters = self.subject.parameters
        stepped = [(place, p, moved_of[id(p)]) for place, p in parameters.placed() if id(p) in moved_of]
        if stepped:
            sums = torch.stack([moved.sums for _, _, moved in stepped])
            has_adam = sums.new_tensor([float(moved.has_adam) for _, _, moved in stepped])
            with_adam = (sums[:, COUNT] * has_adam)[:, None]
            places = [place for place, _, _ in stepped]
            shares = [self.subject.ranks.share(p) for _, p, _ in stepped]
            rows = torch.cat((sums, with_adam), dim=1)
            add_rows(self.region("sums"), places, numbered(parameters.places), rows, shares)

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        places = self.subject.parameters.places
        sums = self.region("sums")
        updates = sums[:, 0]
        weights = sums[:, 1]
        with_adam = sums[:, -1]
        entries = sums[:, COUNT] + sums[:, COUNT + 1]
        norms = norm_probes(self.probes)
        table = sums[:, [0, COUNT, COUNT + 1]]
        readings = of_norms([_update_of(place) for place in places], table, norms)
        readings += of_norms([TOTAL], table.sum(0, keepdim=True), norms)
        for probe in self.of_updates:
            keys = [place.metric(probe.slug) for place in places]
            readings.append(Reading(keys, probe.value(updates, weights), entries))
        for column, probe in enumerate(self.of_adam, start=NUM_OWN):
            keys = [place.metric(probe.slug) for place in places]
            readings.append(Reading(keys, probe.value(sums[:, column] / with_adam), with_adam))
        return readings


def _update_of(place: Place) -> Place:
    return Place(f"{place.what}_update", place.where)
