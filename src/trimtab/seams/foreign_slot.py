"""Slots for foreign families: hooks at the edges (inputs and outputs) of modules, which exist only while in use."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import Listener, Slot, Watcher

PREFIX = "trimtab_"


class Layout(Protocol):
    """Position of the tensor of a site within the tensor at an edge."""

    def unpack(self, x: Tensor) -> Tensor: ...

    def pack(self, x: Tensor, y: Tensor) -> Tensor:
        """The edge tensor ``x``, with the site tensor replaced by ``y``."""
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """The site tensor is the whole edge tensor."""

    def unpack(self, x: Tensor) -> Tensor:
        return x

    def pack(self, x: Tensor, y: Tensor) -> Tensor:
        return y


@dataclass(frozen=True, slots=True)
class Heads:
    """Site tensor BHTK in consecutive channels of (B, T, channels) or (B, T, H, K), from channel ``start`` on."""

    num_heads: int
    width: int
    start: int = 0

    def unpack(self, x: Tensor) -> Tensor:
        size = self.num_heads * self.width
        flat = x.flatten(2)[..., self.start : self.start + size]
        return flat.unflatten(-1, (self.num_heads, self.width)).transpose(1, 2)

    def pack(self, x: Tensor, y: Tensor) -> Tensor:
        flat, mine = x.flatten(2), y.transpose(1, 2).flatten(2)
        if mine.shape == flat.shape:
            return mine.view(x.shape)
        end = self.start + mine.shape[-1]
        return torch.cat((flat[..., : self.start], mine, flat[..., end:]), dim=-1)


@dataclass(frozen=True, slots=True)
class Interleaved:
    """Site tensor BHTK in (B, T, H * 3 * K), ordered by head; ``index`` is 0 for query, 1 for key, 2 for value."""

    num_heads: int
    width: int
    index: int

    def unpack(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, 3, self.width))[..., self.index, :].transpose(1, 2)

    def pack(self, x: Tensor, y: Tensor) -> Tensor:
        parts = list(x.unflatten(-1, (self.num_heads, 3, self.width)).unbind(-2))
        parts[self.index] = y.transpose(1, 2)
        return torch.stack(parts, dim=-2).flatten(-3)


class Mount(Protocol):
    """Connects a slot to the model while the slot is in use."""

    def mount(self, owner: nn.Module, slot: ForeignSlot) -> None: ...

    def unmount(self, owner: nn.Module, slot: ForeignSlot) -> None: ...


class ForeignSlot(Slot):
    """A slot that is added to the model with its first edit, listener or watcher, and removed with its last."""

    def __init__(self, name: str, owner: nn.Module, mount: Mount) -> None:
        super().__init__()
        self.name = PREFIX + name
        self._mount = mount
        self.bind(owner)

    def __deepcopy__(self, memo: dict[int, Any]) -> ForeignSlot:
        """Copy the slot and bind the copy to the copy of its owner, so that a copied model has separate slots."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        owner = self._owner()
        for key, value in self.__dict__.items():
            if key != "_owner":
                twin.__dict__[key] = copy.deepcopy(value, memo)
        twin._owner = self._owner if owner is None else weakref.ref(copy.deepcopy(owner, memo))
        return twin

    def bind(self, owner: nn.Module) -> None:
        """Set the module at which the slot is mounted; needed again after the model was copied."""
        self._owner = weakref.ref(owner)  # weak: a plain reference would register the owner as a submodule of its slot

    @override
    def move(self, owner: nn.Module) -> None:
        before = self._owner()
        if before is None or before is owner:
            return
        self._mount.unmount(before, self)
        del before._modules[self.name]
        self.bind(owner)
        self._connect()

    @override
    def append(self, module: nn.Module) -> Self:
        self._connect()
        return super().append(module)

    @override
    def discard(self, edit: nn.Module) -> None:
        super().discard(edit)
        self._disconnect()

    @override
    def watch(self, watcher: Watcher) -> Callable[[], None]:
        self._connect()
        remove = super().watch(watcher)

        def take_away() -> None:
            remove()
            self._disconnect()

        return take_away

    @override
    def listen(self, listener: Listener) -> None:
        self._connect()
        super().listen(listener)

    @override
    def unlisten(self, listener: Listener) -> None:
        super().unlisten(listener)
        self._disconnect()

    def _connect(self) -> None:
        owner = self._owner()
        if owner is not None and owner._modules.get(self.name) is not self:
            self._mount.mount(owner, self)  # first, because it may raise
            owner.add_module(self.name, self)

    def _disconnect(self) -> None:
        owner = self._owner()
        in_use = self._modules or self.watchers or self.listeners
        if owner is not None and not in_use and self.name in owner._modules:
            self._mount.unmount(owner, self)
            del owner._modules[self.name]


@dataclass(frozen=True, slots=True)
class Edge:
    """The input or output of a module; a forward hook passes its tensor through the slot."""

    side: Literal["input", "output"]
    layout: Layout = Whole()

    def mount(self, owner: nn.Module, slot: ForeignSlot) -> None:
        hook = _EdgeHook(slot.name, self.layout)
        if self.side == "input":
            owner.register_forward_pre_hook(hook.before, with_kwargs=True)
        else:
            owner.register_forward_hook(hook.after)

    def unmount(self, owner: nn.Module, slot: ForeignSlot) -> None:
        # Hooks are identified by name, because a copied model has copies of the hooks but not of their handles.
        for hooks in (owner._forward_pre_hooks, owner._forward_hooks):
            for key in [key for key, hook in hooks.items() if _name_of(hook) == slot.name]:
                del hooks[key]
                owner._forward_pre_hooks_with_kwargs.pop(key, None)


@dataclass(frozen=True, slots=True)
class _EdgeHook:
    """A hook that looks up its slot by name, so that it also works in a copy of the model."""

    name: str
    layout: Layout

    def through(self, module: nn.Module, x: Tensor) -> Tensor:
        slot = module._modules[self.name]
        assert slot is not None
        site = self.layout.unpack(x)
        edited = slot(site)
        return x if edited is site else self.layout.pack(x, edited)

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor):
            return (self.through(module, args[0]), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        return args, {**kwargs, name: self.through(module, kwargs[name])}

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self.through(module, output[0]), *output[1:])
        return self.through(module, output)


def _name_of(hook: Any) -> str | None:
    owner = getattr(hook, "__self__", None)
    return owner.name if isinstance(owner, _EdgeHook) else None
