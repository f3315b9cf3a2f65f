"""Methods: named tuples of interventions, which are installed in a model together and can be removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from trimtab.change import Change, WeightChange
from trimtab.host import Host, SiteUnavailableError, evaluating, stored_weight
from trimtab.intervention import ConflictError, GradientRule, Intervention, ModelIntervention, ModuleSwap, Source
from trimtab.method.installed import Installed, Registry, installed_in


class NotInstallableError(RuntimeError):
    """The model is already compiled or sharded, so edits would be silently ignored; nothing was changed."""


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


def install(interventions: Sequence[ModelIntervention], host: Host) -> tuple[Installed, ...]:
    """Install interventions in a model, all or none; see ``Method.install``."""
    _refuse_compiled_or_sharded(host.model)
    if host.only_watched and interventions:
        raise SiteUnavailableError(f"{interventions[0].slug()} cannot be installed: {host.family} can only be watched")
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
                receipt = Installed(intervention, host, intervention.prepare(host))
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
        Registry.of(host.model).installed.extend(fresh)
    for receipt in (*untouched, *fresh):
        receipt.mark()
    return tuple(fresh)


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
