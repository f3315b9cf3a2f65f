"""A method: a slug and a tuple of interventions, put into a model all or none, and taken out again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn
from torch.nn.utils import parametrize

from trimtab.host import Host, PartView
from trimtab.intervention import (
    Change,
    ConflictError,
    GradientRule,
    Intervention,
    MergeError,
    ModelIntervention,
    Source,
    WeightChange,
)


class NotInstallableError(RuntimeError):
    """The model is compiled or sharded already, so an edit would be silently ignored; nothing was changed."""


class RemovalError(RuntimeError):
    """The weights were trained with the method in place, so it cannot be taken out; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Method:
    """A named tuple of interventions.

    Attributes:
        slug: one name for config, tables, report rows and docs.
    """

    slug: str
    interventions: tuple[Intervention, ...]
    source: Source

    @property
    def gradient_rules(self) -> tuple[GradientRule, ...]:
        """The part of the method that the training loop applies: pass these to ``train``."""
        return tuple(i for i in self.interventions if isinstance(i, GradientRule))

    def install(self, host: Host) -> tuple[Installed, ...]:
        """Put every model intervention in, or none.

        Raises:
            SiteUnavailableError: if the host lacks a site or part.
            ConflictError: if something is already installed, built in, or claimed twice.
            NotInstallableError: if the model is compiled or sharded.
        """
        return install([i for i in self.interventions if isinstance(i, ModelIntervention)], host)

    @contextmanager
    def applied(self, host: Host) -> Generator[tuple[Installed, ...]]:
        """Install on entry, remove on exit.

        Raises:
            RemovalError: on exit, if the method owns weights of the family that were trained meanwhile;
                the model then keeps the method.
        """
        installed = self.install(host)
        try:
            yield installed
        finally:
            for one in installed:
                one.check_removable()
            for one in reversed(installed):
                one.remove()


@dataclass(eq=False)
class Installed:
    """The receipt of one intervention that is in a model."""

    slug: str
    host: Host
    changes: Sequence[Change]
    _versions: tuple[int, ...] = field(default=(), repr=False)

    def remove(self) -> None:
        """Restore the model bit for bit.

        Raises:
            RemovalError: if weights have been trained since and the method does more than edit activations.
        """
        self.check_removable()
        for change in reversed(self.changes):
            change.undo()
        self._forget()

    def merge(self) -> None:
        """Bake the effective weights into the plain ones and take the method out; outputs stay the same.

        Raises:
            MergeError: if the method has no effective weight.
        """
        if not all(isinstance(change, WeightChange) for change in self.changes):
            raise MergeError(f"{self.slug} has no effective weight to merge")
        for change in self.changes:
            change.merge()
        self._forget()

    def check_removable(self) -> None:
        """Do nothing if ``remove`` would succeed.

        Raises:
            RemovalError: if it would not.
        """
        if not all(change.freely_removable for change in self.changes) and not self.untouched:
            raise RemovalError(
                f"{self.slug}: the weights changed since it was installed, and mean something only with it; "
                "merge() bakes in an effective weight where one exists"
            )

    @property
    def untouched(self) -> bool:
        """Whether no weight of the model changed since the installation."""
        return self._versions == _versions(self.host.model)

    def mark(self) -> None:
        """Take the present weights as those of the installation."""
        self._versions = _versions(self.host.model)

    def _forget(self) -> None:
        registry = _Registry.of(self.host.model)
        registry.installed.remove(self)
        for other in registry.installed:
            other.mark()
        if not registry.installed:
            registry.detach(self.host.model)


def install(interventions: Sequence[ModelIntervention], host: Host) -> tuple[Installed, ...]:
    """Put interventions into a model, all or none; see ``Method.install``."""
    _refuse_compiled_or_sharded(host.model)
    installed = installed_in(host.model)
    taken = [one.slug for one in installed] + [i.slug() for i in interventions]
    for slug, count in Counter(taken).items():
        if count > 1:
            raise ConflictError(f"{slug} would be installed twice")
    for slug in sorted(host.built_in & {i.slug() for i in interventions}):
        raise ConflictError(f"{host.family} has {slug} built in")
    fresh = [Installed(i.slug(), host, i.prepare(host)) for i in interventions]
    _refuse_double_claims((*installed, *fresh))
    untouched = [one for one in installed if one.untouched]
    registry = _Registry.of(host.model)
    for one in fresh:
        for change in one.changes:
            change.apply()
        registry.installed.append(one)
    for one in (*untouched, *fresh):
        one.mark()
    if not registry.installed:
        registry.detach(host.model)
    return tuple(fresh)


def installed_in(model: nn.Module) -> tuple[Installed, ...]:
    """What is installed in a model now, in order."""
    registry = cast("_Registry | None", model.__dict__.get(_Registry.KEY))
    return () if registry is None else tuple(registry.installed)


def method_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that belong to installed methods (gains, scales), not to the family; these never decay."""
    return {
        parameter
        for one in installed_in(model)
        for change in one.changes
        for module in change.own_modules()
        for parameter in module.parameters()
    }


def family_matrices(host: Host) -> Sequence[nn.Parameter | Any]:
    """The effective weight matrices of the family's own parts, each once."""
    modules = {id(view.module): view for view in host.find_parts() if _owns_matrix(view)}
    return [cast(Any, view.module).weight for view in modules.values()]


def _owns_matrix(view: PartView) -> bool:
    weight = getattr(view.module, "weight", None)
    return weight is not None and weight.ndim >= 2


class _Registry:
    """What is installed in one model; keeps the family's names in saved weights."""

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
        for one in self.installed:
            for change in one.changes:
                merged |= change.renames(one.slug, paths)
        return merged


def _to_public_keys(model: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    _rename(state, prefix, _Registry.of(model).renames(model))


def _to_internal_keys(model: nn.Module, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    _rename(state, prefix, {new: old for old, new in _Registry.of(model).renames(model).items()})


def _rename(state: dict[str, Any], prefix: str, renames: dict[str, str]) -> None:
    for old, new in renames.items():
        for key in [key for key in state if key.startswith(prefix + old)]:
            state[prefix + new + key[len(prefix + old) :]] = state.pop(key)


def _versions(model: nn.Module) -> tuple[int, ...]:
    return tuple(parameter._version for parameter in model.parameters())


def _refuse_compiled_or_sharded(model: nn.Module) -> None:
    compiled = hasattr(model, "_orig_mod") or model._compiled_call_impl is not None
    if compiled:
        raise NotInstallableError("the model is compiled: install methods first, then torch.compile")
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        raise NotInstallableError("the model is sharded: install methods first, then fully_shard")


def _refuse_double_claims(receipts: Sequence[Installed]) -> None:
    owner: dict[object, str] = {}
    for one in receipts:
        for change in one.changes:
            claim = change.claim()
            if claim is not None and owner.setdefault(claim, one.slug) != one.slug:
                raise ConflictError(f"{owner[claim]} and {one.slug} both replace the same weight or part")
            module = getattr(change, "module", None)
            already = module is not None and parametrize.is_parametrized(module, "weight")
            if already and owner[claim] == one.slug and one not in installed_in(one.host.model):
                raise ConflictError(f"{one.slug}: the weight of a {type(module).__name__} is parametrized already")
