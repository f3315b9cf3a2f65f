"""The kinds of intervention that change a model: edits, swaps, rules of weights, initial values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import ClassVar, cast

from torch import Tensor, nn
from typing_extensions import override

from trimtab.change import Change, InitialChange, SlotChange, SwapChange, WeightChange
from trimtab.host import Host, Part, PartView, Site, SiteUnavailableError, Tap
from trimtab.intervention.contract import Intervention, TrainedModelError

_WEIGHTS_FOLLOW: ContextVar[bool] = ContextVar("weights follow", default=False)


class ModelIntervention(Intervention):
    """An intervention that alters the model when it is installed.

    Attributes:
        initial_fields: fields that set initial weights alone: saved weights are the same function whatever they are.
        adds_hidden_matrices: whether linear layers that it adds lie between two activations, like those of the family,
            so that an optimizer for hidden matrices trains them.
    """

    initial_fields: ClassVar[frozenset[str]] = frozenset()
    adds_hidden_matrices: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, host: Host) -> Sequence[Change]:
        """Build all changes without altering the model.

        Raises:
            SiteUnavailableError: if the host lacks a site or part.
        """


class ModelEdit(ModelIntervention):
    """An edit of the tensors at one or more sites.

    An edit that hears another layer and recomputes blocks in backward (activation checkpointing) must keep what it
    heard until then: in the recomputation it is not told again.

    Attributes:
        hears: further sites of the same layer. Each edit is then a ``Listener`` and receives their tensors before its
            own turn.
    """

    hears: ClassVar[Sequence[Site]] = ()

    @property
    @abstractmethod
    def sites(self) -> Sequence[Site]:
        """Sites at which edits are inserted."""

    @abstractmethod
    def edit(self, tap: Tap) -> nn.Module | None:
        """The module to put at one tap: a tensor in, a tensor of the same shape out; None leaves the tap alone."""

    def places_heard(self, tap: Tap) -> Sequence[tuple[Site, int | None]]:
        """The sites and layers whose tensors the edit at this tap is told; override it to hear earlier layers."""
        return [(site, tap.layer) for site in self.hears]

    @override
    def prepare(self, host: Host) -> Sequence[Change]:
        """Build everything that will be put in, touching nothing.

        Raises:
            SiteUnavailableError: if the host lacks a site, or every tap is left alone.
            ValueError: if an edit would hear a tensor that passes only after its own.
        """
        like = _first_parameter(host.model)
        num_layers = len({tap.layer for tap in host.find_taps() if tap.layer is not None})
        changes: list[Change] = []
        for site in self.sites:
            for bare in host.taps(site):
                tap = replace(bare, num_layers=num_layers)
                heard = tuple(self._heard(place, tap, host) for place in self.places_heard(tap))
                edit = self.edit(replace(tap, heard=heard))
                if edit is not None:
                    edit = edit.to(like.device, like.dtype)
                    changes.append(SlotChange(tap.slot, edit, tuple(other.slot for other in heard)))
        if not changes:
            raise SiteUnavailableError(
                f"{self.slug()} has nothing to edit in this {host.family} of {num_layers} layers"
            )
        return changes

    def _heard(self, place: tuple[Site, int | None], tap: Tap, host: Host) -> Tap:
        site, layer = place
        taps = [other for other in host.taps(site) if other.layer == layer]
        if not taps:
            raise SiteUnavailableError(f"{host.family} offers no site '{site}' in layer {layer}")
        other = taps[-1]  # of two taps of one site in one layer, as of the residual stream, the later one
        is_later = layer is not None and tap.layer is not None and layer > tap.layer
        if is_later or other.slot is tap.slot:
            raise ValueError(
                f"{self.slug()}: the edit at '{tap.site}' of layer {tap.layer} cannot hear '{site}' of layer {layer}, "
                "which passes after it; let it hear an earlier layer"
            )
        return other


class ModuleSwap(ModelIntervention):
    """Replaces the modules of parts by other modules."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """Parts to replace. Parts that share one module, such as a fused QKV, are replaced together."""

    @abstractmethod
    def replacement(self, views: Sequence[PartView]) -> nn.Module:
        """The module that replaces the module shared by these parts."""

    @override
    def prepare(self, host: Host) -> Sequence[Change]:
        shared: dict[int, list[PartView]] = {}
        for part in self.parts:
            for view in host.parts(part):
                shared.setdefault(id(view.module), []).append(view)
        return [SwapChange(views[0], self.replacement(views), views[0].module) for views in shared.values()]


class WeightRule(ModelIntervention):
    """A parametrization between the stored weight and the one used in the forward pass."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """Parts whose weights are parametrized. Parts that share one matrix, such as a fused QKV, share one rule."""

    @abstractmethod
    def rule(self, weight: Tensor) -> nn.Module:
        """The module that maps the stored weight (out, in) to the effective weight."""

    @override
    def prepare(self, host: Host) -> Sequence[Change]:
        modules = {id(v.module): v.module for part in self.parts for v in host.parts(part)}
        return [WeightChange(m, self.rule(cast(Tensor, m.weight))) for m in modules.values()]


class InitRule(ModelIntervention):
    """Sets new initial weights in a fresh model."""

    @abstractmethod
    def initial(self, view: PartView, num_layers: int) -> Tensor | None:
        """Initial weight (out, in) of this part, drawn from torch's global generator; None keeps the present weight."""

    @override
    def prepare(self, host: Host) -> Sequence[Change]:
        """Build all changes without altering the model.

        Raises:
            TrainedModelError: if the model has been trained.
        """
        if is_trained(host):
            raise TrainedModelError(
                f"{self.slug()} draws new initial weights, and this model has been trained; use it on a fresh one"
            )
        views = host.find_parts()
        num_layers = 1 + max(view.layer for view in views if view.layer is not None)
        drawn: dict[int, list[tuple[PartView, Tensor]]] = {}
        first: dict[int, nn.Module] = {}
        for view in views:
            if view.part is not Part.EMBEDDING and getattr(view.module, "weight", None) is None:
                continue  # a norm that was removed
            stored = view.module if view.stored is None else view.stored
            if first.setdefault(id(stored), view.module) is not view.module:
                continue  # a tied head gets the initial weight of the embedding
            values = self.initial(view, num_layers)
            if values is not None:
                drawn.setdefault(id(view.module), []).append((view, values))
        return [InitialChange([view for view, _ in some], [values for _, values in some]) for some in drawn.values()]


def is_trained(host: Host) -> bool:
    """Whether the model was trained: the gains within a norm differ, which no initialisation produces.

    A model on the meta device has no values, and a model without gains gives no evidence. Both count as fresh, and so
    does every model within ``weights_follow``.
    """
    if _WEIGHTS_FOLLOW.get():
        return False
    norms = (view for part in (Part.ATTN_NORM, Part.MLP_NORM, Part.FINAL_NORM) for view in _offered(host, part))
    gains = (getattr(view.module, "weight", None) for view in norms)
    return any(
        isinstance(gain, Tensor) and not gain.is_meta and bool((gain != gain.flatten()[0]).any()) for gain in gains
    )


@contextmanager
def weights_follow() -> Generator[None]:
    """Let initial weights be drawn in a trained model too: all weights are about to be loaded."""
    token = _WEIGHTS_FOLLOW.set(True)
    try:
        yield
    finally:
        _WEIGHTS_FOLLOW.reset(token)


def _offered(host: Host, part: Part) -> Sequence[PartView]:
    return [view for view in host.find_parts() if view.part is part]


def _first_parameter(model: nn.Module) -> Tensor:
    return next(model.parameters())
