"""Moments of the tensors and gradients that pass the points of a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from trimtab.probe import NUM_SUMS, Moments, Probe, TensorProbe, measure, measure_rows, sample_rows
from trimtab.watching.meter import Guard, Meter, Reading
from trimtab.watching.metric import Place
from trimtab.watching.norms import numbered
from trimtab.watching.pack import Pack
from trimtab.watching.subject import Subject

LARGE = 1 << 18  # entries from which a tensor is measured by itself
MOST_WAITING = 4 << 20  # bytes of samples held back


class TensorMeter(Meter):
    """Keeps one row of moments per place; every micro-batch adds to it."""

    name: ClassVar[str] = "tensors"
    serves: ClassVar[tuple[type[Probe], ...]] = (TensorProbe,)

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.places = [*subject.forward, *subject.backward]
        self.row_of = numbered(self.places)
        self.statistics = [probe for probe in probes if isinstance(probe, TensorProbe)]
        self.high = any(probe.high for probe in self.statistics)
        self.reserve("moments", (len(self.places), NUM_SUMS))
        self.reserve("largest", (len(self.places),), "max")
        self._forget()

    @override
    def begin(self, guard: Guard) -> Sequence[object]:
        self._forget()
        return ()

    @override
    def sees(self) -> Collection[Place]:
        return self.row_of

    @override
    def see(self, place: Place, x: Tensor) -> None:
        row = self.row_of[place]
        sample = sample_rows(x, self.subject.preset.rows)
        # Small samples wait and are measured together with others of their size: for a single sample, starting each of
        # a dozen operations takes longer than the operations.
        if sample.numel() > LARGE:
            self._add([row], measure(sample, high=self.high)[None], [x.numel()])
            return
        kept = sample if sample.numel() < x.numel() else sample.clone()  # the model may change it in place
        self._waiting.setdefault((kept.numel(), kept.dtype), []).append((row, kept.reshape(-1), x.numel()))
        self._waiting_bytes += kept.numel() * kept.element_size()
        if self._waiting_bytes > MOST_WAITING:
            self._measure_waiting()

    @override
    def see_gradient(self, place: Place, x: Tensor) -> None:
        self.see(place, x)

    @override
    def after_step(self) -> None:
        self._measure_waiting()

    def _measure_waiting(self) -> None:
        for group in self._waiting.values():
            rows, tensors, entries = (list(column) for column in zip(*group, strict=True))
            self._add(rows, measure_rows(torch.stack(tensors), high=self.high), entries)
        self._forget()

    def _forget(self) -> None:
        self._waiting: dict[tuple[int, torch.dtype], list[tuple[int, Tensor, int]]] = {}
        self._waiting_bytes = 0

    def _add(self, rows: list[int], measured: Tensor, entries: list[int]) -> None:
        moments = self.region("moments")
        index = torch.tensor(rows, device=moments.device)
        measured[:, 1] = torch.tensor(entries, dtype=measured.dtype, device=measured.device)
        moments.index_add_(0, index, measured[:, :NUM_SUMS])
        self.region("largest").scatter_reduce_(0, index, measured[:, NUM_SUMS], "amax")

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        moments = Moments.of(self.region("moments"), self.region("largest"))
        looked_at = moments.count + moments.non_finite
        return [
            Reading([place.metric(probe.slug) for place in self.places], probe.value(moments), looked_at)
            for probe in self.statistics
        ]
