"""The named places of a decoder, and the contract of an adapter that offers them.

Shape legend, used as suffixes everywhere: ``B`` sequences, ``T`` positions, ``D`` model width,
``H`` heads (``G`` of keys and values where several queries share one), ``K`` channels of one head,
``S`` keys, ``F`` hidden width of the MLP, ``V`` vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override


class Site(StrEnum):
    """A place in a decoder where a tensor of fixed shape passes."""

    EMBEDDING = "embedding"  # BTD, what the first block receives
    ATTN_IN = "attn_in"  # BTD, after the pre-norm
    QUERY = "query"  # BHTK, before rotary
    KEY = "key"  # BHTK, before rotary
    VALUE = "value"  # BHTK
    QUERY_ROTATED = "query_rotated"  # BHTK
    KEY_ROTATED = "key_rotated"  # BHTK
    SCORES = "scores"  # BHTT, scaled, before the mask
    WEIGHTS = "weights"  # BHTT, after the softmax
    HEAD_OUT = "head_out"  # BHTK, between attention and Proj
    ATTN_OUT = "attn_out"  # BTD, before the residual add
    MLP_IN = "mlp_in"  # BTD, after the pre-norm
    MLP_HIDDEN = "mlp_hidden"  # BTF, FC2's input
    MLP_OUT = "mlp_out"  # BTD, before the residual add
    RESIDUAL = "residual"  # BTD, after an add
    LOGITS = "logits"  # BTV


class Part(StrEnum):
    """The role of a module that owns weights."""

    ATTN_NORM = "attn_norm"
    Q = "q"
    K = "k"
    V = "v"
    PROJ = "proj"
    MLP_NORM = "mlp_norm"
    FC1 = "fc1"
    FC2 = "fc2"
    FINAL_NORM = "final_norm"
    EMBEDDING = "embedding"
    HEAD = "head"


class SiteUnavailableError(LookupError):
    """A host lacks a site or part that was asked for; nothing was changed."""


Watcher = Callable[[Tensor, Tensor], None]

AttentionWatcher = Callable[[Tensor, Tensor, Tensor | None, float], None]
"""Called with rotated queries BHTK and keys BGSK after every edit, the mask (None: causal; boolean: True is visible;
else added to the scores), and the factor that scores are scaled by."""


class Listener(Protocol):
    """An edit of one site that is told what passes at another, in the same pass and before its own turn."""

    def hear(self, x: Tensor) -> None:
        """Take the tensor of the other site, after its edits; gradients flow through it."""
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
        """Whether the tensor of this site must really be built; a watcher alone never changes the kernel."""
        return len(self._modules) > 0

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
        """Tell it no more."""
        self.listeners = [one for one in self.listeners if one is not listener]

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Add a watcher; returns the function that takes it away again."""
        self.watchers.append(watcher)
        return lambda: self.watchers.remove(watcher)

    def move(self, owner: nn.Module) -> None:
        """Sit at another module, which plays the same part; a slot in the code of a family stays where it is."""

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
        heard: taps of the same layer whose tensors the edit is told, in the order its intervention names the sites.
        num_layers: blocks of the model; these last two are filled in for the edit.
    """

    site: Site
    layer: int | None
    slot: Slot
    width: int
    num_heads: int = 0
    heard: tuple[Tap, ...] = ()
    num_layers: int = 0


@dataclass(frozen=True, slots=True)
class PartView:
    """One part of one layer: the module that plays the role, and its share of that module's weight.

    Attributes:
        owner: the module that holds the part as ``attribute``.
        rows: the rows of the weight that belong to this part, where several parts share one matrix: a slice, or
            their indices where the parts are interleaved.
        transposed: whether the module stores its weight as (in, out).
    """

    part: Part
    layer: int | None
    owner: nn.Module
    attribute: str
    rows: slice | Tensor | None = None
    transposed: bool = False

    @property
    def module(self) -> nn.Module:
        """The module that plays this role now."""
        return cast(nn.Module, getattr(self.owner, self.attribute))

    @property
    def stored(self) -> nn.Parameter | None:
        """The parameter behind the weight, which parts may share or tie; None if the weight is made of others."""
        return stored_weight(self.module)

    @property
    def weight(self) -> Tensor:
        """The effective weight of this part, (out, in) for a linear part; a view, but a copy of interleaved rows."""
        weight = cast(Tensor, self.module.weight)
        weight = weight.mT if self.transposed else weight
        return weight if self.rows is None else weight[self.rows]

    def write(self, value: Tensor) -> None:
        """Set this part's weight, (out, in), leaving the other parts of a shared matrix alone.

        Raises:
            TypeError: if a method computes the weight from other parameters.
        """
        weight = cast(Tensor, self.module.weight)
        if not isinstance(weight, nn.Parameter):
            raise TypeError(f"the weight of {self.part} is computed from others, so it cannot be written")
        with torch.no_grad():
            weight = weight.mT if self.transposed else weight
            weight[slice(None) if self.rows is None else self.rows] = value.to(weight)

    def replace(self, module: nn.Module) -> None:
        """Let another module play this role."""
        setattr(self.owner, self.attribute, module)


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Eval mode for as long as the block lasts, each submodule's own mode restored after it."""
    modes = [(one, one.training) for one in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for one, mode in modes:
            one.training = mode


def stored_weight(module: nn.Module) -> nn.Parameter | None:
    """The parameter behind a module's weight, seen through a parametrization, without computing that weight."""
    if parametrize.is_parametrized(module, "weight"):
        return cast(nn.Parameter, cast(Any, module).parametrizations.weight.original)
    return module._parameters.get("weight")


@dataclass(frozen=True, slots=True)
class Point:
    """A tensor at the edge of a module, which may be read but not changed.

    Attributes:
        what: its name in metric keys, such as ``qkv_output``; points with the same name and layer are pooled.
        gradient: whether its gradient is that of this place alone; not where the tensor goes elsewhere too.
    """

    what: str
    layer: int | None
    module: nn.Module
    side: Literal["input", "output"]
    gradient: bool = True


@dataclass(frozen=True, slots=True)
class AttentionPoint:
    """One attention layer, whose queries and keys may be watched.

    Attributes:
        watch: adds a watcher; returns the function that takes it away again.
        scores: edits of the scores, which a watcher applies to the rows it looks at.
        weights: edits of the weights after the softmax.
        cap: of the scores, built into the family; None if there is none.
    """

    layer: int
    num_heads: int
    watch: Callable[[AttentionWatcher], Callable[[], None]]
    scores: Slot = field(default_factory=Slot)
    weights: Slot = field(default_factory=Slot)
    cap: float | None = None


class Host(ABC):
    """An adapter that offers the sites and parts of one model family.

    Attributes:
        family: the name shown in errors and tables.
        built_in: slugs of interventions the family already has; installing those is a conflict.
    """

    family: str
    built_in: frozenset[str] = frozenset()

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether the model belongs to this family."""
        return False

    @abstractmethod
    def find_taps(self) -> Sequence[Tap]:
        """Every tap of the model, layer by layer in order of the forward pass."""

    @abstractmethod
    def find_parts(self) -> Sequence[PartView]:
        """Every part of the model, layer by layer in order of the forward pass."""

    def find_points(self) -> Sequence[Point]:
        """Every tensor that probes read, in order of the forward pass."""
        return ()

    def find_attentions(self) -> Sequence[AttentionPoint]:
        """Every attention layer whose queries and keys can be watched, in order."""
        return ()

    def taps(self, site: Site) -> Sequence[Tap]:
        """The taps of one site, in order.

        Raises:
            SiteUnavailableError: if the family does not offer the site.
        """
        every = self.find_taps()
        found = [tap for tap in every if tap.site is site]
        if not found:
            raise SiteUnavailableError(
                f"{self.family} offers no site '{site}'; it offers {_listed({tap.site for tap in every})}"
            )
        return found

    def parts(self, part: Part) -> Sequence[PartView]:
        """The views of one part, in order.

        Raises:
            SiteUnavailableError: if the family does not offer the part.
        """
        every = self.find_parts()
        found = [view for view in every if view.part is part]
        if not found:
            raise SiteUnavailableError(
                f"{self.family} offers no part '{part}'; it offers {_listed({view.part for view in every})}"
            )
        return found


def _listed(names: set[Site] | set[Part]) -> str:
    return ", ".join(sorted(names)) or "none"


def block_points(
    layer: int, edges: dict[str, tuple[Sequence[nn.Module], nn.Module, str]], *, shared: Sequence[str] = ()
) -> list[Point]:
    """Input and output points of one block's linear layers.

    Args:
        layer: index of the block.
        edges: by name (``qkv``, ``fc1`` ...): the modules that produce the output, and the module and side where
            the input they share can be read once, so that its gradient is that of all of them together.
        shared: names whose input is the residual stream itself, which has a gradient of its own.
    """
    points: list[Point] = []
    for name, (producers, carrier, side) in edges.items():
        edge = cast(Literal["input", "output"], side)
        points.append(Point(f"{name}_input", layer, carrier, edge, name not in shared))
        points += [Point(f"{name}_output", layer, producer, "output") for producer in producers]
    return points
