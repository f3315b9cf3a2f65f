"""The reversible changes that an intervention makes to a model: applied, undone, or merged."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trimtab.host import Listener, PartView, Slot


class MergeError(ValueError):
    """There is no effective weight to merge; nothing was changed."""


class Change(Protocol):
    """One reversible change of a model.

    Attributes:
        freely_removable: whether it can also be undone after training.
        mergeable: whether it has an effective weight that can be written into a plain weight.
    """

    freely_removable: bool

    @property
    def mergeable(self) -> bool: ...

    def apply(self) -> None: ...

    def undo(self) -> None: ...

    def merge(self) -> None: ...

    def claims(self) -> Sequence[object]:
        """What no two changes may alter at once; empty for changes that can be combined."""
        ...

    def renames(self, slug: str, paths: dict[int, str]) -> dict[str, str]:
        """Prefixes of internal state-dict keys, and the prefixes under which they are saved."""
        ...

    def own_modules(self) -> Iterable[nn.Module]:
        """The modules whose parameters belong to the method, not to the family."""
        ...


@dataclass(eq=False)
class SlotChange:
    """An edit added to a slot.

    Attributes:
        heard: slots whose tensors the edit is told before its turn; it is then a ``Listener``.
    """

    slot: Slot
    edit: nn.Module
    heard: Sequence[Slot] = ()
    freely_removable: bool = True
    mergeable: bool = False

    def apply(self) -> None:
        for slot in self.heard:
            slot.listen(cast(Listener, self.edit))
        self.slot.append(self.edit)

    def undo(self) -> None:
        self.slot.discard(self.edit)
        for slot in self.heard:
            slot.unlisten(cast(Listener, self.edit))

    def merge(self) -> None:
        raise MergeError("an edit of activations has no effective weight to merge; use remove()")

    def claims(self) -> Sequence[object]:
        return ()

    def renames(self, slug: str, paths: dict[int, str]) -> dict[str, str]:
        path = paths[id(self.slot)]
        index = list(self.slot).index(self.edit)
        return {f"{path}.{index}.": f"trimtab.{slug}.{path}."}

    def own_modules(self) -> Iterable[nn.Module]:
        return (self.edit,)


@runtime_checkable
class Factorised(Protocol):
    """A replacement whose parameters are equivalent to one plain weight."""

    def effective_weight(self) -> Tensor:
        """The equivalent weight, in the shape and order of the weight that was replaced."""
        ...

    def effective_bias(self) -> Tensor | None: ...

    def output_factors(self) -> Sequence[tuple[nn.Parameter, Tensor]]:
        """The factors whose rows are output rows, each with the index of the output row that each of its rows is."""
        ...


@dataclass(eq=False)
class SwapChange:
    """Another module in the place of a part; its parameters then count as the family's."""

    view: PartView
    replacement: nn.Module
    original: nn.Module
    freely_removable: bool = False

    @property
    def mergeable(self) -> bool:
        return isinstance(self.replacement, Factorised)

    def apply(self) -> None:
        self.view.replace(self.replacement)
        _move_slots(self.original, self.replacement)

    def undo(self) -> None:
        self.view.replace(self.original)
        _move_slots(self.replacement, self.original)

    def merge(self) -> None:
        if not isinstance(self.replacement, Factorised):
            raise MergeError(f"the swapped {self.view.part} has no effective weight to merge")
        with torch.no_grad():
            original = cast(nn.Linear, self.original)
            original.weight.copy_(self.replacement.effective_weight())
            bias = self.replacement.effective_bias()
            if bias is not None:
                original.bias.copy_(bias)
        self.undo()

    def claims(self) -> Sequence[object]:
        # Both weights too: a rule on the module that is swapped out would be silently inactive.
        return (
            (id(self.view.owner), self.view.attribute),
            (id(self.original), "weight"),
            (id(self.replacement), "weight"),
        )

    def renames(self, slug: str, paths: dict[int, str]) -> dict[str, str]:
        path = f"{paths[id(self.view.owner)]}.{self.view.attribute}".lstrip(".")
        return {f"{path}.": f"trimtab.{slug}.{path}."}

    def own_modules(self) -> Iterable[nn.Module]:
        return ()


class HeldRule(nn.Module):
    """A rule that knows the stored weight to which it belongs; the weight stays the property of the model.

    Attributes:
        weight_is_loaded: whether the weights that are being loaded contain the stored weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight_is_loaded = False
        self._holder: weakref.ref[nn.Module] | None = None

    def attach(self, holder: nn.Module) -> None:
        """Name the module whose ``original`` is the stored weight."""
        self._holder = weakref.ref(holder)

    @property
    def stored(self) -> Tensor | None:
        """The stored weight; None before the rule is installed, or if the model is gone."""
        holder = None if self._holder is None else self._holder()
        return None if holder is None else cast(Tensor, holder.original)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        state = {name: value for name, value in self.__dict__.items() if name != "_holder"}
        new.__dict__.update(copy.deepcopy(state, memo))
        # When a whole model is copied, the copy of the holder exists already.
        holder = None if self._holder is None else memo.get(id(self._holder()))
        new._holder = None if holder is None else weakref.ref(holder)
        return new


@dataclass(eq=False)
class WeightChange:
    """A parametrization of a weight; the ``right_inverse`` of a rule determines what is stored for it."""

    module: nn.Module
    rule: nn.Module
    freely_removable: bool = False
    mergeable: bool = True
    _plain: Tensor | None = field(default=None, repr=False)

    def apply(self) -> None:
        if hasattr(self.rule, "right_inverse"):  # because of rounding, the rule would not restore it
            self._plain = _kept(cast(Tensor, self.module.weight))
        parametrize.register_parametrization(self.module, "weight", self.rule)
        if isinstance(self.rule, HeldRule):
            self.rule.attach(cast(nn.Module, cast(nn.Module, self.module.parametrizations).weight))

    def undo(self) -> None:
        self._take_out(keep_effective=False)
        if self._plain is not None:
            with torch.no_grad():
                cast(Tensor, self.module.weight).copy_(self._plain)

    def merge(self) -> None:
        self._take_out(keep_effective=True)

    def _take_out(self, *, keep_effective: bool) -> None:
        parametrize.remove_parametrizations(self.module, "weight", leave_parametrized=keep_effective)
        # torch registers the weight after the bias; an optimizer's state has the old order.
        weight = self.module._parameters.pop("weight")
        self.module._parameters = {"weight": weight} | self.module._parameters

    def claims(self) -> Sequence[object]:
        return ((id(self.module), "weight"),)

    def renames(self, slug: str, paths: dict[int, str]) -> dict[str, str]:
        path = paths[id(self.module)]
        inner = f"{path}.parametrizations.weight"
        return {f"{inner}.original": f"{path}.weight", f"{inner}.0.": f"trimtab.{slug}.{path}."}

    def own_modules(self) -> Iterable[nn.Module]:
        return (self.rule,)

    def before_loading(self, keys: Container[str], prefix: str, paths: Mapping[int, str]) -> None:
        """Tell the rule whether its weight is about to be loaded, from the internal keys."""
        if isinstance(self.rule, HeldRule):
            key = f"{prefix}{paths[id(self.module)]}.parametrizations.weight.original"
            self.rule.weight_is_loaded = key in keys


@dataclass(eq=False)
class InitialChange:
    """Other initial values of the parts of one module; the old values are kept on the CPU for the removal."""

    views: Sequence[PartView]
    values: Sequence[Tensor]
    freely_removable: bool = False
    mergeable: bool = True
    _plain: Sequence[Tensor] = field(default=(), repr=False)

    def apply(self) -> None:
        self._plain = [_kept(view.weight) for view in self.views]
        self._write(self.values)

    def undo(self) -> None:
        self._write(self._plain)

    def merge(self) -> None:
        """Nothing to do: the weights are plain already."""

    def _write(self, values: Sequence[Tensor]) -> None:
        for view, value in zip(self.views, values, strict=True):
            view.write(value)

    def claims(self) -> Sequence[object]:
        # A rule or a factorisation of the same weight would be made from the old values.
        return ((id(self.views[0].module), "weight"),)

    def renames(self, slug: str, paths: dict[int, str]) -> dict[str, str]:
        return {}

    def own_modules(self) -> Iterable[nn.Module]:
        return ()


def _move_slots(source: nn.Module, target: nn.Module) -> None:
    """Move the slots at the edges of a module: their edits belong to the place, not to the module."""
    for child in list(source.children()):
        if isinstance(child, Slot):
            child.move(target)


def _kept(weight: Tensor) -> Tensor:
    return weight.detach().clone() if weight.is_meta else weight.detach().cpu().clone()
