"""The life cycle of readings: which passes and steps are read, and when each meter has its turn."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.sink import Sink
from trimtab.watching import seam
from trimtab.watching.errors import NotReadableError, WatchError
from trimtab.watching.guarding import Guarding
from trimtab.watching.hooks import hook, hook_step
from trimtab.watching.measure import wide
from trimtab.watching.meter import Meter, Reading
from trimtab.watching.meters import meters_for
from trimtab.watching.outlets import Outlets
from trimtab.watching.pack import Pack
from trimtab.watching.publishing import empty_places, padding_of, row_of
from trimtab.watching.rounds import Round
from trimtab.watching.subject import Subject

_NUMBERS = itertools.count()


class Watch:
    """Probes attached to a model; made by ``watch``.

    Attributes:
        step: optimizer steps so far, those before the watch began included.
        last: the latest row; empty before the first.
        seconds: wall time of the readings so far by meter, on the host: ``tensors``, ``logits``, ``attention``,
            ``weights``, ``gradients``, ``updates``, ``tables``, ``matrices``, ``model``, ``noise``. It does not contain
            the time of work that a device does later.
        traced: whether the hooks became part of a compiled graph.
    """

    def __init__(self, subject: Subject, *, sinks: Sequence[Sink], run: str, step: int = 0) -> None:
        self.preset = subject.preset
        self.step = step
        self.last: dict[str, float] = {}
        self._guarding = Guarding()
        self.seconds = self._guarding.seconds
        self.every = subject.preset.every
        self.traced = False
        self._subject = subject
        self._outlets = Outlets(sinks if subject.ranks.writes else ())
        self._number = next(_NUMBERS)
        self._token = torch.zeros(1)
        self._pack = Pack()
        self._pack.add("broken", ())
        self._meters = meters_for(subject, self._pack)
        wanted = {place for meter in self._meters for place in meter.sees()}
        self._forward = [place for place in subject.forward if place in wanted]
        self._places = [*self._forward, *(place for place in subject.backward if place in wanted)]
        self._observers: list[list[Meter]] = []
        self._pack.add("passed", (len(self._forward),))
        self._pack.add("padding", (4,))
        self._round = Round(subject.optimizers)
        self._passed = [0] * len(self._places)
        self._removers: list[Callable[[], None]] = []
        self._reading_handles: list[Any] = []
        self._optimizer_handles: list[Any] = []
        self._gradient_rows: set[int] = set()
        self._armed = False
        self._in_forward = False
        self._gradients_read = False
        self._passes = 0
        self._warned = False
        seam.OBSERVERS[self._number] = self
        self._arm()  # a host may refuse the hooks; nothing was changed before
        for optimizer in subject.optimizers:
            self._optimizer_handles += hook_step(optimizer, self._before_step, self._after_step)
        try:
            self._outlets.open(run)
        except BaseException:
            self.remove("failed")
            raise

    @property
    def model(self) -> nn.Module:
        """The watched model."""
        return self._subject.model

    @property
    def every(self) -> int:
        """Optimizer steps from one reading to the next.

        Raises:
            ValueError: if set below 1.
        """
        return self._every

    @every.setter
    def every(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"every must be at least 1, got {steps}")
        self._every = steps

    @property
    def due(self) -> bool:
        """Whether the coming step is read."""
        return self._armed

    def see_gradients(self) -> None:
        """Read the gradients now: call it after backward and before clipping, to read them unclipped.

        Without it they are read as the optimizer receives them.
        """
        if self._armed:
            self._gradients_read = True
            self._each(lambda meter: meter.read_gradients)

    def read(self) -> dict[str, float]:
        """End the present reading by hand, without an optimizer; returns its row.

        Raises:
            EmptyReadingError: if no tensor passed the hooks since the last reading.
            WatchError: if the watch was removed, was switched off after errors, or reads at optimizer steps.
        """
        if self._number not in seam.OBSERVERS:
            raise WatchError("this watch was removed; attach another")
        if self._guarding.broken:
            raise WatchError("probes were switched off after errors; see the warning, and attach another watch")
        if self._subject.optimizers:
            raise WatchError("this watch reads at every optimizer step by itself; its rows are in .last and the sinks")
        self.step += 1
        try:
            self._finish()
        finally:
            self._arm()
        return self.last

    def remove(self, status: Literal["finished", "failed"] = "finished") -> None:
        """Take every hook out and close the sinks; the model is as it was."""
        self._disarm(for_good=True)
        for handle in self._optimizer_handles:
            handle.remove()
        self._optimizer_handles = []
        if seam.OBSERVERS.pop(self._number, None) is not None:
            self._outlets.close(status)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.remove("finished" if kind is None else "failed")

    # What the hooks report; see ``seam.Observer``.

    def enter(self, module: nn.Module | None, grad: bool, mask: Tensor | None) -> None:
        """A forward pass of the watched model begins; one without gradients is an evaluation and does not count."""
        is_copy = module is not None and module is not self.model
        if is_copy:
            self._in_forward = False
            return
        self._gradient_rows.clear()
        self._in_forward = self._armed and (grad or not self._subject.optimizers)
        self._passes += self._in_forward and grad
        if self._in_forward and not self._guarding.broken:
            self._guarding.run("padding", partial(self._see_mask, mask))

    def _see_mask(self, mask: Tensor | None) -> None:
        padding = self._pack["padding"]
        padding += self._subject.padding.enter(mask).to(padding)

    def leave(self) -> None:
        """The forward pass ends. What runs later, in backward, is recomputation and is not counted again."""
        self._in_forward = False

    def see(self, row: int, x: Tensor) -> None:
        """A tensor passes."""
        if row >= 0 and self._in_forward:
            self._passed[row] += x.numel()
            self._each(lambda meter: partial(meter.see, self._places[row], x), self._observers[row])

    def see_gradient(self, row: int, x: Tensor) -> None:
        """A gradient passes."""
        if self._armed:
            self._each(lambda meter: partial(meter.see_gradient, self._places[row], x), self._observers[row])

    def wants_gradient(self, row: int) -> bool:
        """Whether a tensor's gradient belongs to the pass: once, in forward or in a checkpoint's recomputation."""
        if self._in_forward:
            self._gradient_rows.add(row)
            return True
        # A reentrant checkpoint builds its graph only in backward; one that is not has built it in forward already.
        return self._armed and self._passes > 0 and row not in self._gradient_rows

    def keep(self, handle: Any) -> None:
        """Take a hook on a leaf away when the reading ends."""
        self._reading_handles.append(handle)

    def see_attention(self, index: int, q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> None:
        """Queries and keys pass."""
        if self._in_forward:
            meters = [meter for meter in self._meters if meter.sees_attention]
            self._each(lambda meter: partial(meter.see_attention, index, q, k, mask, scale), meters)

    # One optimizer step.

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._round.is_overtaking(optimizer):
            self._round.go_on_without_the_others()
            self.step += 1
            self._disarm()  # the forward pass of the present step was counted with that of the last one
        if self._armed and not self._round.is_open:
            if not self._gradients_read:
                self.see_gradients()
            self._each(lambda meter: meter.before_step)

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._armed:
            self._each(lambda meter: partial(meter.stepped, optimizer))
        if not self._round.is_ended_by(optimizer):
            return
        self.step += 1
        try:
            if self._armed:
                self._finish()
        finally:
            if (self.step + 1) % self.every == 0:
                self._arm()
            elif self._armed:
                self._disarm()

    def _arm(self) -> None:
        like = next(self.model.parameters(), torch.zeros(0))
        self._guarding.device_type = like.device.type
        self._pack.clear(like.device, wide(like))
        self._passed = [0] * len(self._places)
        self._passes = 0
        self._gradients_read = False
        self._in_forward = False
        if not self._removers:
            attention = any(meter.sees_attention for meter in self._meters)
            self._removers = hook(self._subject, self._token, self._number, self._places, attention=attention)
        self._remove_reading_handles()
        self._begin()
        self._armed = True

    def _begin(self) -> None:
        for meter in list(self._meters):
            self._guarding.run(meter.name, partial(self._begin_with, meter))
        if not self._observers:
            self._observers = [[meter for meter in self._meters if place in meter.sees()] for place in self._places]

    def _begin_with(self, meter: Meter) -> None:
        try:
            self._reading_handles += meter.begin(partial(self._guarding.run, meter.name))
        except NotReadableError as error:
            self._meters.remove(meter)
            self._observers = []
            warnings.warn(f"trimtab: {error}", stacklevel=2)

    def _remove_reading_handles(self) -> None:
        for handle in self._reading_handles:
            handle.remove()
        self._reading_handles = []

    def _disarm(self, *, for_good: bool = False) -> None:
        self._armed = False
        self._remove_reading_handles()
        # In a compiled graph the hooks are part of the graph: removing them would have no effect, or would compile a
        # new graph.
        if for_good or not self.traced:
            for remove in self._removers:
                remove()
            self._removers = []

    def _finish(self) -> None:
        ranks = self._subject.ranks
        self._each(lambda meter: meter.after_step)
        passed = self._pack["passed"]
        passed.copy_(torch.tensor(self._passed[: len(self._forward)], dtype=passed.dtype))
        if not ranks.alone:
            self._pack["broken"].fill_(float(self._guarding.broken))
            self._pack.reduce(ranks.group)  # also of a broken watch: the other processes wait for it
            self._guarding.broken = bool(self._pack["broken"] > 0)  # the row would lack what one process could not read
        if self._guarding.broken:
            return
        readings: list[Reading] = []
        for meter in self._meters:
            self._guarding.run(meter.name, lambda meter=meter: readings.extend(meter.values(self._passes)))
        self._publish(readings)

    def _publish(self, readings: Sequence[Reading]) -> None:
        passed = self._pack["passed"]
        if self._forward or any(meter.sees_attention for meter in self._meters):
            readings = [padding_of(self._pack["padding"]), *readings]
        row, entries = row_of(self.step, readings, passed, self._subject.preset.summary)
        needs_passes = any(meter.needs_passes for meter in self._meters)
        empty = empty_places(self.step, self._forward, entries, passes=self._passes, needs_passes=needs_passes)
        if empty and not self._warned:
            self._warned = True
            places = ", ".join(empty[:5])
            warnings.warn(f"trimtab: no tensor passed {places}: there is no reading of it", stacklevel=2)
        self.last = row
        self._each(lambda meter: partial(meter.published, row))
        self._outlets.log(self.step, row)

    def _each(self, turn: Callable[[Meter], Callable[[], None]], meters: Sequence[Meter] | None = None) -> None:
        """Give each meter its turn, all of them if ``meters`` is None; none once the probes are switched off."""
        for meter in self._meters if meters is None else meters:
            if not self._guarding.broken:
                self._guarding.run(meter.name, turn(meter))
