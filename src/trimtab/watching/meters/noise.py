"""Gradient variance over the micro-batches of a step, from hooks on the leaves, without a copy of any gradient."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from trimtab.probe import GradientNoiseProbe, Probe
from trimtab.sharding import is_sharded
from trimtab.watching.errors import NotReadableError
from trimtab.watching.meter import Guard, Meter, Reading
from trimtab.watching.meters.gradients import add_gradient_norms
from trimtab.watching.metric import Place, where_of
from trimtab.watching.norms import NUM_COLUMNS, numbered
from trimtab.watching.pack import Pack
from trimtab.watching.subject import Subject, gradient_of

LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
ALL = "all"


class NoiseMeter(Meter):
    """Adds up ||g_k||^2 as the gradient of each micro-batch arrives, and keeps the squared norm of their sum.

    The norm of the sum is the norm before any clipping. If nothing changes the gradients between the last micro-batch
    and the reading, it is taken once, at the reading. If something does, it is taken after each micro-batch, because a
    hook cannot tell which micro-batch is the last. Each reading determines which of the two holds for the next one; if
    clipping begins between two readings, one reading is lost. With several processes the sum exists only after the
    gradients were averaged, so there it is taken from the gradients at the reading.
    """

    name: ClassVar[str] = "noise"
    serves: ClassVar[tuple[type[Probe], ...]] = (GradientNoiseProbe,)
    needs_passes: ClassVar[bool] = True

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.statistics = [probe for probe in probes if isinstance(probe, GradientNoiseProbe)]
        places = subject.parameters.places
        self.row_of = numbered(places)
        embeddings = [weight.place for weight in subject.weights if weight.place.what.startswith("embedding")]
        self.groups = _groups(places, embeddings[0] if embeddings else None)
        self.reserve("squares", (len(places),))
        self.reserve("averaged", (len(places), NUM_COLUMNS))  # norms of the gradients averaged over processes
        self._sums: dict[str, Tensor] = {}
        self._marks: dict[str, tuple[Tensor, int, int]] = {}  # identity and version of each gradient when it arrived
        self._take_once = False
        self._settled = False

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        return super().takes(probes, subject) if subject.optimizers else ()

    @override
    def begin(self, guard: Guard) -> Sequence[Any]:
        self._sums = {}
        self._marks = {}
        leaves = [(name, p) for name, p in self.subject.parameters.named() if p.requires_grad]
        if any(is_sharded(p) for _, p in leaves):
            raise NotReadableError("gradient variance cannot be read under fully_shard: leave the probe out")
        handles: list[Any] = []
        for name, p in leaves:
            row = self.row_of[self.subject.parameters.place_of[name]]
            handles.append(p.register_hook(self._adding(guard, row)))
            handles.append(p.register_post_accumulate_grad_hook(self._keeping(guard, name)))
        return handles

    def _adding(self, guard: Guard, row: int) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            guard(lambda: self._add(gradient, row))

        return add

    def _add(self, gradient: Tensor, row: int) -> None:
        self.region("squares")[row] += _square(gradient)

    def _keeping(self, guard: Guard, name: str) -> Callable[[Tensor], None]:
        def keep(p: Tensor) -> None:
            guard(lambda: self._keep(name, p))

        return keep

    def _keep(self, name: str, p: Tensor) -> None:
        if p.grad is None:
            return
        self._settled = False
        self._marks[name] = (p, *_mark(p))
        if not self._take_once:
            self._sums[name] = _square(p.grad)

    @override
    def read_gradients(self) -> None:
        self._settle()
        if not self.subject.ranks.alone:
            averaged = self.region("averaged")
            averaged.zero_()
            add_gradient_norms(averaged, self.subject.parameters, self.subject.ranks)

    def _settle(self) -> None:
        if self._settled or not self._marks:
            return
        unchanged = all(_mark(p) == (identity, version) for p, identity, version in self._marks.values())
        if self._take_once:
            marked = ((name, p) for name, (p, *_) in self._marks.items())
            self._sums = {name: _square(p.grad) for name, p in marked if p.grad is not None and unchanged}
        self._take_once = unchanged
        self._settled = True
        self._marks = {}

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        """The statistics of each group of parameters; none with a single micro-batch."""
        world = self.subject.ranks.size
        total = passes * world
        if total < 2:
            return []
        noise = self.region("squares") / world**2  # processes average their gradients
        of_sum = self._squares_of_sum()
        places: list[Place] = []
        sums: list[tuple[Tensor, Tensor]] = []
        for group, members in self.groups.items():
            present = [place for place in members if place in of_sum]
            if present:
                places.append(gradient_of(group))
                of_parts = torch.stack([noise[self.row_of[place]] for place in present]).sum()
                sums.append((of_parts, torch.stack([of_sum[place] for place in present]).sum()))
        readings: list[Reading] = []
        for probe in self.statistics if sums else ():
            values = torch.stack([probe.value(of_parts, square, total) for of_parts, square in sums])
            readings.append(Reading([place.metric(probe.slug) for place in places], values, torch.ones_like(values)))
        return readings

    def _squares_of_sum(self) -> dict[Place, Tensor]:
        """||sum of g_k||^2 of the parameters of each place."""
        if not self.subject.ranks.alone:
            return dict(zip(self.row_of, self.region("averaged")[:, 0], strict=True))
        squares: dict[Place, Tensor] = {}
        for name, square in self._sums.items():
            place = self.subject.parameters.place_of[name]
            squares[place] = squares[place] + square if place in squares else square
        return squares


def _mark(p: Tensor) -> tuple[int, int]:
    """Tells whether the gradient of a parameter was replaced or changed in place."""
    return (0, 0) if p.grad is None else (id(p.grad), p.grad._version)


def _square(gradient: Tensor) -> Tensor:
    """Sum of squares, in double precision where the device has it.

    It is a dot product: on a CPU the norm of a million entries takes three times as long and is off in the fifth digit.
    """
    flat = gradient.detach().reshape(-1)
    flat = flat.float() if flat.element_size() < 4 else flat
    square = flat.dot(flat)
    return square if square.device.type == "mps" else square.double()


def _groups(places: Sequence[Place], embedding: Place | None) -> dict[Place, list[Place]]:
    """The parameters whose variances are added up: all, the embedding, and each layer with its norms and biases."""
    groups: dict[Place, list[Place]] = {Place(ALL, "model"): list(places)}
    if embedding is not None:
        groups[embedding] = [embedding]
    for place in places:
        layer = LAYER.search(place.where)  # the first number in a name: families name their layers so
        if layer:
            groups.setdefault(Place(ALL, where_of(int(layer[1]))), []).append(place)
    return groups
