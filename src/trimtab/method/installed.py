"""What is installed in a model: receipts, and the keys and marks of saved weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import torch
from torch import nn

from trimtab.change import Change, InitialChange, MergeError, WeightChange
from trimtab.host import Host
from trimtab.intervention import ModelIntervention
from trimtab.method.marks import Mark, SavedMethodError, marks_in


class RemovalError(RuntimeError):
    """The weights were trained with the method installed, so it cannot be removed; nothing was changed."""


@dataclass(eq=False)
class Installed:
    """The receipt of an installed intervention, which removes or merges it."""

    intervention: ModelIntervention
    host: Host
    changes: Sequence[Change]
    _weights: str = field(default="", repr=False)

    @property
    def slug(self) -> str:
        """The slug of the intervention."""
        return self.intervention.slug()

    def remove(self) -> None:
        """Restore the model bit for bit.

        Raises:
            RemovalError: if weights were trained since the installation and the method does more than edit activations.
        """
        self.check_removable()
        self._take_out([change.undo for change in reversed(self.changes)])

    def merge(self) -> None:
        """Store the effective weights as plain weights and remove the method; outputs are unchanged.

        Raises:
            MergeError: if the method has no effective weight.
        """
        if not all(change.mergeable for change in self.changes):
            raise MergeError(f"{self.slug} has no effective weight to merge")
        self._check_installed()
        self._take_out([change.merge for change in self.changes])

    def check_removable(self) -> None:
        """Check that ``remove`` would succeed.

        Raises:
            RemovalError: if it would not.
        """
        self._check_installed()
        if not self.untouched:
            raise RemovalError(
                f"{self.slug}: the weights changed since it was installed, and are valid only with it; "
                "use merge() to store the effective weight if there is one"
            )

    @property
    def freely_removable(self) -> bool:
        """Whether the intervention can be removed after training too."""
        return all(change.freely_removable for change in self.changes)

    @property
    def untouched(self) -> bool:
        """Whether removal restores the model: only activations are edited, or no weight changed since installation."""
        return self.freely_removable or self._weights == _fingerprint(self.host.model)

    def mark(self) -> None:
        """Record the present weights as those at installation."""
        self._weights = "" if self.freely_removable else _fingerprint(self.host.model)

    def _check_installed(self) -> None:
        if self not in installed_in(self.host.model):
            raise RemovalError(f"{self.slug} is no longer installed in the model")

    def _take_out(self, actions: Sequence[Callable[[], None]]) -> None:
        others = [receipt for receipt in installed_in(self.host.model) if receipt is not self and receipt.untouched]
        for action in actions:
            action()
        registry = Registry.of(self.host.model)
        registry.installed.remove(self)
        for other in others:
            other.mark()
        if not registry.installed:
            registry.detach(self.host.model)


def installed_in(model: nn.Module) -> tuple[Installed, ...]:
    """Interventions installed in a model, in order."""
    registry = cast("Registry | None", model.__dict__.get(Registry.KEY))
    return () if registry is None else tuple(registry.installed)


class Registry:
    """Interventions installed in one model, and the hooks that keep the key names of the family in saved weights."""

    KEY = "_trimtab"
    NAMESPACE = "trimtab"

    def __init__(self) -> None:
        self.installed: list[Installed] = []
        self.handles: list[Any] = []

    @classmethod
    def of(cls, model: nn.Module) -> Registry:
        registry = cast("Registry | None", model.__dict__.get(cls.KEY))
        if registry is None:
            registry = cls()
            registry.handles = [
                model.register_state_dict_post_hook(_to_public_keys),
                model.register_load_state_dict_pre_hook(_to_internal_keys),
            ]
            model.__dict__[cls.KEY] = registry
            model.__dict__[cls.NAMESPACE] = _Namespace()
        return registry

    def detach(self, model: nn.Module) -> None:
        for handle in self.handles:
            handle.remove()
        model.__dict__.pop(self.KEY, None)
        model.__dict__.pop(self.NAMESPACE, None)

    def marks(self) -> list[Mark]:
        """The marks of what is installed; initial values leave none, since a model without the rule is the same."""
        return [
            Mark.of(receipt.intervention, order)
            for order, receipt in enumerate(self.installed)
            if not all(isinstance(change, InitialChange) for change in receipt.changes)
        ]

    def renames(self, model: nn.Module) -> dict[str, str]:
        paths = {id(module): name for name, module in model.named_modules()}
        merged: dict[str, str] = {}
        for receipt in self.installed:
            for change in receipt.changes:
                merged |= change.renames(receipt.slug, paths)
        return merged


class _Namespace:
    """Stands for the keys ``trimtab.*``, which are no modules: torch looks up saved keys among a model's attributes."""

    def __getattr__(self, name: str) -> Self:
        if name.startswith("_"):
            raise AttributeError(name)
        return self


def _to_public_keys(model: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    registry = Registry.of(model)
    _rename(state, prefix, registry.renames(model))
    for mark in registry.marks():
        state[prefix + mark.key] = mark.tensor()


def _to_internal_keys(model: nn.Module, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    registry = Registry.of(model)
    _check_marks(registry, [mark for key, mark in marks_in(state).items() if key == prefix + mark.key])
    for mark in registry.marks():
        state.pop(prefix + mark.key, None)
    _rename(state, prefix, {new: old for old, new in registry.renames(model).items()})
    paths = {id(module): name for name, module in model.named_modules()}
    for change in (change for receipt in registry.installed for change in receipt.changes):
        if isinstance(change, WeightChange):
            change.before_loading(state, prefix, paths)


def _check_marks(registry: Registry, marks: Sequence[Mark]) -> None:
    present = {receipt.slug: receipt.intervention for receipt in registry.installed}
    for mark in marks:
        mine = present.get(mark.slug)
        if mine is None:
            raise SavedMethodError(f"the weights were saved with {mark}, which is not installed in the model")
        if not mark.says_the_same(mine):
            raise SavedMethodError(f"the weights were saved with {mark}, and the model has {Mark.of(mine, 0)}")


def _rename(state: dict[str, Any], prefix: str, renames: dict[str, str]) -> None:
    for old, new in renames.items():
        for key in [key for key in state if key.startswith(prefix + old)]:
            state[prefix + new + key[len(prefix + old) :]] = state.pop(key)


def _fingerprint(model: nn.Module) -> str:
    # Contents, not version counters: fused optimizers and writes through .data do not advance the counters.
    digest = hashlib.blake2b(digest_size=16)
    for parameter in model.parameters():
        if not parameter.is_meta:
            flat = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(flat.numpy().tobytes())
    return digest.hexdigest()
