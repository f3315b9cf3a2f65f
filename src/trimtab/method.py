"""Methods: named tuples of interventions, which are installed in a model together and can be removed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trimtab.change import Change, MergeError, WeightChange
from trimtab.host import Host, evaluating, stored_weight
from trimtab.intervention import ConflictError, GradientRule, Intervention, ModelIntervention, ModuleSwap, Source


class NotInstallableError(RuntimeError):
    """The model is already compiled or sharded, so edits would be silently ignored; nothing was changed."""


class RemovalError(RuntimeError):
    """The weights were trained with the method installed, so it cannot be removed; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Method:
    """A named tuple of interventions.

    Attributes:
        slug: name of the method in config files, tables, reports and docs.
    """

    slug: str
    interventions: tuple[Intervention, ...]
    source: Source

    @property
    def gradient_rules(self) -> tuple[GradientRule, ...]:
        """The interventions that the training loop applies; pass them to ``train``."""
        return tuple(i for i in self.interventions if isinstance(i, GradientRule))

    def install(self, host: Host) -> tuple[Installed, ...]:
        """Install every model intervention, or none.

        Raises:
            SiteUnavailableError: if the host lacks a site or part.
            ConflictError: if an intervention is already installed, is built into the family, or conflicts with another.
            NotInstallableError: if the model is compiled or sharded.
        """
        return install([i for i in self.interventions if isinstance(i, ModelIntervention)], host)

    @contextmanager
    def applied(self, host: Host) -> Generator[tuple[Installed, ...]]:
        """Install on entry, remove on exit.

        Raises:
            RemovalError: on exit, if the method alters weights of the family and these were trained meanwhile; the
                model then keeps the method.
        """
        installed = self.install(host)
        try:
            yield installed
        finally:
            for receipt in installed:
                receipt.check_removable()
            for receipt in reversed(installed):
                receipt.remove()


@dataclass(eq=False)
class Installed:
    """The receipt of an installed intervention, which removes or merges it."""

    slug: str
    host: Host
    changes: Sequence[Change]
    _weights: str = field(default="", repr=False)

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
        registry = _Registry.of(self.host.model)
        registry.installed.remove(self)
        for other in others:
            other.mark()
        if not registry.installed:
            registry.detach(self.host.model)


def install(interventions: Sequence[ModelIntervention], host: Host) -> tuple[Installed, ...]:
    """Install interventions in a model, all or none; see ``Method.install``."""
    _refuse_compiled_or_sharded(host.model)
    installed = installed_in(host.model)
    taken = [receipt.slug for receipt in installed] + [i.slug() for i in interventions]
    for slug, count in Counter(taken).items():
        if count > 1:
            raise ConflictError(f"{slug} would be installed twice")
    for slug in sorted(host.built_in & {i.slug() for i in interventions}):
        raise ConflictError(f"{host.family} has {slug} built in")
    untouched = [receipt for receipt in installed if receipt.untouched]
    fresh: list[Installed] = []
    try:
        # Module swaps are installed first, so that edits attach to the final modules.
        for intervention in sorted(interventions, key=lambda i: not isinstance(i, ModuleSwap)):
            with evaluating(host.model):  # reading a weight must not advance the state of its parametrization
                receipt = Installed(intervention.slug(), host, intervention.prepare(host))
            _refuse_double_claims((*installed, *fresh), receipt)
            _apply_all(receipt.changes)
            fresh.append(receipt)
    except BaseException:
        for change in (change for receipt in reversed(fresh) for change in reversed(receipt.changes)):
            change.undo()
        raise
    slugs = [i.slug() for i in interventions]
    fresh.sort(key=lambda receipt: slugs.index(receipt.slug))
    if fresh:
        _Registry.of(host.model).installed.extend(fresh)
    for receipt in (*untouched, *fresh):
        receipt.mark()
    return tuple(fresh)


def installed_in(model: nn.Module) -> tuple[Installed, ...]:
    """Interventions installed in a model, in order."""
    registry = cast("_Registry | None", model.__dict__.get(_Registry.KEY))
    return () if registry is None else tuple(registry.installed)


def method_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Parameters of installed methods, such as gains and scales, to which weight decay never applies.

    The weights of linear layers that a method adds, such as those of a gate, are not among them: they decay like the
    weights of the family.
    """
    added = {stored_weight(module) for module in model.modules() if isinstance(module, nn.Linear)}
    return {
        parameter
        for receipt in installed_in(model)
        for change in receipt.changes
        for module in change.own_modules()
        for parameter in module.parameters()
        if parameter not in added
    }


def family_matrices(host: Host) -> Sequence[Tensor]:
    """The effective weight matrices of the parts of the family. A matrix that parts share or tie occurs once."""
    # A product of factors is not a parameter and is computed at every access, so its module identifies it.
    modules = {id(view.module if view.stored is None else view.stored): view.module for view in host.find_parts()}
    weights = [cast("Tensor | None", getattr(module, "weight", None)) for module in modules.values()]
    return [weight for weight in weights if weight is not None and weight.ndim >= 2]


class _Registry:
    """Interventions installed in one model, and the hooks that keep the key names of the family in saved weights."""

    KEY = "_trimtab"

    def __init__(self) -> None:
        self.installed: list[Installed] = []
        self.handles: list[Any] = []

    @classmethod
    def of(cls, model: nn.Module) -> _Registry:
        registry = cast("_Registry | None", model.__dict__.get(cls.KEY))
        if registry is None:
            registry = cls()
            registry.handles = [
                model.register_state_dict_post_hook(_to_public_keys),
                model.register_load_state_dict_pre_hook(_to_internal_keys),
            ]
            model.__dict__[cls.KEY] = registry
        return registry

    def detach(self, model: nn.Module) -> None:
        for handle in self.handles:
            handle.remove()
        model.__dict__.pop(self.KEY, None)

    def renames(self, model: nn.Module) -> dict[str, str]:
        paths = {id(module): name for name, module in model.named_modules()}
        merged: dict[str, str] = {}
        for receipt in self.installed:
            for change in receipt.changes:
                merged |= change.renames(receipt.slug, paths)
        return merged


def _to_public_keys(model: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    _rename(state, prefix, _Registry.of(model).renames(model))


def _to_internal_keys(model: nn.Module, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    registry = _Registry.of(model)
    _rename(state, prefix, {new: old for old, new in registry.renames(model).items()})
    paths = {id(module): name for name, module in model.named_modules()}
    for change in (change for receipt in registry.installed for change in receipt.changes):
        if isinstance(change, WeightChange):
            change.before_loading(state, prefix, paths)


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


def _apply_all(changes: Sequence[Change]) -> None:
    applied: list[Change] = []
    try:
        for change in changes:
            change.apply()
            applied.append(change)
    except BaseException:
        for change in reversed(applied):
            change.undo()
        raise


def _refuse_compiled_or_sharded(model: nn.Module) -> None:
    compiled = hasattr(model, "_orig_mod") or model._compiled_call_impl is not None
    if compiled:
        raise NotInstallableError("the model is compiled: install methods first, then torch.compile")
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        raise NotInstallableError("the model is sharded: install methods first, then fully_shard")


def _refuse_double_claims(others: Sequence[Installed], receipt: Installed) -> None:
    owner = {claim: other.slug for other in others for change in other.changes for claim in change.claims()}
    for change in receipt.changes:
        for claim in change.claims():
            if claim in owner:
                raise ConflictError(f"{owner[claim]} and {receipt.slug} both replace the same weight or part")
        owner |= dict.fromkeys(change.claims(), receipt.slug)
        if isinstance(change, WeightChange) and parametrize.is_parametrized(change.module, "weight"):
            kind = type(change.module).__name__
            raise ConflictError(f"{receipt.slug}: the weight of a {kind} is parametrized already")
