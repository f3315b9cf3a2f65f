"""Slots: the edits, listeners and watchers at one site of one layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn
from typing_extensions import override

from trimtab.host.names import Site

Watcher = Callable[[Tensor, Tensor], None]


class Listener(Protocol):
    """An edit of one site that is told what passes at another site, in the same pass and before its own turn."""

    def hear(self, x: Tensor) -> None:
        """Take the tensor of the other site, after the edits there; gradients flow through it."""
        ...


class Slot(nn.Sequential):
    """Edits applied in order at one site of one layer; empty is the identity.

    Listeners are edits of other slots that need this tensor as well. Watchers read the tensor before and
    after the edits and can change nothing: they are not modules, so they own no parameters and leave no
    trace in the state dict.

    Raises:
        ValueError: in ``forward``, if an edit changed the shape of the tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watchers: list[Watcher] = []
        self.listeners: list[Listener] = []

    @property
    def active(self) -> bool:
        """Whether the tensor of this site must be built: a watcher alone never changes the kernel, a listener may."""
        return len(self._modules) > 0 or len(self.listeners) > 0

    @override
    def forward(self, input: Tensor) -> Tensor:
        if not self._modules and not self.watchers and not self.listeners:
            return input
        output = input
        for edit in self:
            output = cast(Tensor, edit(output))
        if output.shape != input.shape:
            raise ValueError(f"an edit changed {tuple(input.shape)} to {tuple(output.shape)}")
        for listener in self.listeners:
            listener.hear(output)
        for watch in self.watchers:
            watch(input.detach(), output.detach())
        return output

    def listen(self, listener: Listener) -> None:
        """Tell an edit of another slot what passes here."""
        self.listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Stop telling an edit of another slot what passes here."""
        self.listeners = [other for other in self.listeners if other is not listener]

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Add a watcher; returns the function that takes it away again."""
        self.watchers.append(watcher)
        return lambda: self.watchers.remove(watcher)

    def move(self, owner: nn.Module) -> None:
        """Move to another module that plays the same part; a slot in the code of a family stays where it is."""

    def discard(self, edit: nn.Module) -> None:
        """Take one edit out, keeping the order of the others."""
        kept = [module for module in self if module is not edit]
        self._modules.clear()
        self.extend(kept)


@dataclass(frozen=True, slots=True)
class Tap:
    """One slot, with what an edit needs to know to build itself.

    Attributes:
        layer: index of the block from 0; None for a site outside the blocks.
        width: size of the tensor's last axis; 0 where it varies from call to call (scores, weights).
        num_heads: size of the head axis; 0 at sites without one.
        heard: taps whose tensors the edit is told, in the order its intervention names them; filled in for the edit.
        num_layers: blocks of the model; filled in for the edit.
    """

    site: Site
    layer: int | None
    slot: Slot
    width: int
    num_heads: int = 0
    heard: tuple[Tap, ...] = ()
    num_layers: int = 0
