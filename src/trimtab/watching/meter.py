"""The contract of a meter: what reads a model for one or several kinds of probe.

A watch knows only the life cycle of a reading, and calls its meters at each stage:

1. ``reserve`` regions of the pack, once, in the constructor;
2. ``begin`` a reading;
3. ``see``, ``see_gradient`` and ``see_attention`` while the model runs;
4. ``read_gradients`` when the gradients of the step are complete, before the user clips them or the optimizer steps;
5. ``before_step``, ``stepped`` after the step of each optimizer, and ``after_step`` when all have stepped;
6. ``values``, after the packs of all processes were merged;
7. ``published``, when the row has reached the host.

A new kind of probe comes with its own meter: the class of the probe names it in ``Probe.meter``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from trimtab.probe import Probe
from trimtab.watching.metric import MetricKey, Place
from trimtab.watching.pack import Pack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.watching.subject import Subject

Guard = Callable[[Callable[[], None]], None]
"""Runs an action without gradients and autocast, counts its time, and keeps its errors away from training."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Numbers that belong together, on the device.

    Attributes:
        keys: the names of the numbers.
        values: the numbers, (N,).
        counts: how many entries each number was taken from, (N,); a number taken from none is left out of the row.
    """

    keys: Sequence[MetricKey]
    values: Tensor
    counts: Tensor


class Meter(ABC):
    """Reads what some probes ask for; every method but ``values``, which is abstract, does nothing by default.

    All methods run without gradients and outside of autocast. None may read a number back to the host or change what
    it is given. An error in a method is counted, and never stops training.

    Attributes:
        name: under which the time of this meter is counted; also the prefix of its regions in the pack.
        serves: kinds of probe that this meter reads.
        sees_attention: whether ``see_attention`` is to be called.
        needs_passes: whether a reading without a forward and backward pass is an error.
        subject: what is watched.
        probes: the probes of the preset that this meter reads.
    """

    name: ClassVar[str]
    serves: ClassVar[tuple[type[Probe], ...]] = ()
    sees_attention: ClassVar[bool] = False
    needs_passes: ClassVar[bool] = False

    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        """The probes that this meter reads of the subject; if there are none, the meter is not made."""
        return [probe for probe in probes if cls.is_for(probe)]

    @classmethod
    def is_for(cls, probe: Probe) -> bool:
        """Whether this meter reads probes of this kind: the probe's own meter before those that serve its kind."""
        return isinstance(probe, cls.serves) if probe.meter is None else probe.meter is cls

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        self.subject = subject
        self.probes = tuple(probes)
        self._pack = pack

    def reserve(
        self, name: str, shape: tuple[int, ...], merge: Literal["sum", "max"] = "sum", rest: float = 0.0
    ) -> None:
        """Reserve a region of the pack; only in the constructor.

        Args:
            name: of the region, unique within the meter.
            shape: of the region.
            merge: how the values of several processes are merged.
            rest: value of every entry when a reading begins.
        """
        self._pack.add(f"{self.name}/{name}", shape, merge, rest)

    def region(self, name: str) -> Tensor:
        """A reserved region: writes go into the pack."""
        return self._pack[f"{self.name}/{name}"]

    def begin(self, guard: Guard) -> Sequence[Any]:
        """Start a reading: drop what an unfinished reading gathered.

        Args:
            guard: every hook that the meter registers itself must do its work through it.

        Returns:
            Handles of hooks for this reading only; the watch removes them when it ends.

        Raises:
            NotReadableError: if the meter cannot read this model; it is then left out, with a warning.
        """
        return ()

    def sees(self) -> Collection[Place]:
        """The places, of ``subject.forward`` and ``subject.backward``, whose tensors this meter is shown."""
        return ()

    def see(self, place: Place, x: Tensor) -> None:
        """A tensor passes, in a forward pass that counts."""

    def see_gradient(self, place: Place, x: Tensor) -> None:
        """A gradient passes, in a backward pass; the place is that of the gradient."""

    def see_attention(self, index: int, q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> None:
        """Queries and keys pass the attention layer ``subject.attentions[index]``; see ``AttentionWatcher``."""

    def read_gradients(self) -> None:
        """The gradients of the step are complete; this may be called again if they are computed again."""

    def before_step(self) -> None:
        """The first optimizer is about to step."""

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer has stepped; there may be others, whose steps come before or after."""

    def after_step(self) -> None:
        """All optimizers have stepped, or a reading by hand ends; the pack is merged after it."""

    @abstractmethod
    def values(self, passes: int) -> Sequence[Reading]:
        """The numbers of the reading, from the merged pack.

        Args:
            passes: forward passes with gradients (micro-batches) that one process saw.
        """

    def published(self, row: Mapping[str, float]) -> None:
        """The row has reached the host."""
