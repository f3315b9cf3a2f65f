"""The host shared by all foreign families, those without slots: a decoder described by the paths of its modules."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from typing_extensions import override

from trimtab.host import AttentionPoint, Host, Part, PartView, Point, Site, Slot, Tap, block_points, stored_weight
from trimtab.seams.attend import SeamMount
from trimtab.seams.foreign_slot import PREFIX, Edge, ForeignSlot, Heads, Interleaved, Layout, Mount


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """Module paths of a family, relative to the model, to a block, or to the attention or MLP of a block.

    Attributes:
        blocks, embedding, final_norm, head: relative to the model; ``final_norm`` is None if it is no module.
        attention, mlp: relative to a block.
        attn_norm, mlp_norm: relative to a block; None if the family has no such norm, or none that is a module.
        norms_without_module: whether norms are functions: then the inputs of QKV, FC1 and the head are their outputs.
        attn_out, mlp_out: relative to a block; the modules whose outputs are added to the residual stream.
        qkv: relative to the attention; three modules, or one module that Q, K and V share.
        query, key: relative to the attention; the modules whose outputs are query and key before rotary. Empty if
            these are the modules of ``qkv``.
        proj: relative to the attention.
        fc1: relative to the MLP; one module, or gate and up.
        fc2: relative to the MLP.
        interleaved: whether the rows of a shared QKV matrix are ordered by head, and within a head by Q, K and V.
        transposed: whether linear layers store their weight as (in, out).
    """

    blocks: str
    embedding: str
    final_norm: str | None
    head: str
    attention: str
    mlp: str
    attn_norm: str | None
    mlp_norm: str | None
    attn_out: str
    mlp_out: str
    qkv: tuple[str, ...]
    query: str = ""
    key: str = ""
    proj: str
    fc1: tuple[str, ...]
    fc2: str
    interleaved: bool = False
    transposed: bool = False
    norms_without_module: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """Number of query heads, number of key and value heads, and channels per head of one attention layer."""

    num_heads: int
    num_key_heads: int
    head_width: int


class DecoderHost(Host):
    """Offers the sites and parts of a decoder described by ``Names``. The residual stream is offered to probes only."""

    names: Names

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._slots: dict[tuple[int, str], ForeignSlot] = {}
        self.seam = self.make_seam([self._attention(block) for block in self._blocks()])

    @abstractmethod
    def shape(self, attention: nn.Module) -> Shape:
        """Number and width of the heads of an attention layer."""

    @abstractmethod
    def make_seam(self, attentions: Sequence[nn.Module]) -> SeamMount:
        """The seam that replaces the attention function of this family."""

    def cap(self, attention: nn.Module) -> float | None:
        """The soft cap on scores that is built into an attention layer; None if there is none."""
        return None

    @override
    def find_taps(self) -> Sequence[Tap]:
        taps: list[Tap] = []
        for layer, block in enumerate(self._blocks()):
            taps += self._taps_of(layer, block)
        width = cast("torch.Tensor", self._at(self.names.embedding).weight).shape[1]
        vocabulary = cast("torch.Tensor", self._at(self.names.head).weight).shape[0]
        first = self._slot(self._blocks()[0], Site.EMBEDDING, Edge("input"))
        last = self._slot(self._at(self.names.head), Site.LOGITS, Edge("output"))
        return [Tap(Site.EMBEDDING, None, first, width), *taps, Tap(Site.LOGITS, None, last, vocabulary)]

    def _taps_of(self, layer: int, block: nn.Module) -> list[Tap]:
        attention = self._attention(block)
        mlp = block.get_submodule(self.names.mlp)
        names = self.names
        shape = self.shape(attention)
        proj = attention.get_submodule(names.proj)
        fc2 = mlp.get_submodule(names.fc2)
        width = cast("torch.Tensor", self._at(names.embedding).weight).shape[1]
        hidden = cast("torch.Tensor", stored_weight(fc2)).shape[0 if names.transposed else 1]
        heads = shape.num_heads
        key_heads = shape.num_key_heads
        head = shape.head_width

        def tap(site: Site, owner: nn.Module, mount: Mount, size: int, num_heads: int = 0) -> Tap:
            return Tap(site, layer, self._slot(owner, site, mount), size, num_heads)

        def seam(site: Site, size: int, num_heads: int) -> Tap:
            return tap(site, attention, self.seam, size, num_heads)

        query, key, value = self._heads(attention)
        return [
            tap(Site.ATTN_IN, attention, Edge("input"), width),
            tap(Site.QUERY, query[0], Edge("output", query[1]), head, heads),
            tap(Site.KEY, key[0], Edge("output", key[1]), head, key_heads),
            tap(Site.VALUE, value[0], Edge("output", value[1]), head, key_heads),
            seam(Site.QUERY_ROTATED, head, heads),
            seam(Site.KEY_ROTATED, head, key_heads),
            seam(Site.SCORES, 0, heads),
            seam(Site.WEIGHTS, 0, heads),
            tap(Site.HEAD_OUT, proj, Edge("input", Heads(heads, head)), head, heads),
            tap(Site.ATTN_OUT, block.get_submodule(names.attn_out), Edge("output"), width),
            tap(Site.MLP_IN, mlp, Edge("input"), width),
            tap(Site.MLP_HIDDEN, fc2, Edge("input"), hidden),
            tap(Site.MLP_OUT, block.get_submodule(names.mlp_out), Edge("output"), width),
        ]

    def _heads(self, attention: nn.Module) -> list[tuple[nn.Module, Layout]]:
        """For queries, keys and values: the module whose output holds them, and their layout in that output."""
        names, shape = self.names, self.shape(attention)
        heads = shape.num_heads
        key_heads = shape.num_key_heads
        head = shape.head_width
        if len(names.qkv) == 1:
            shared = attention.get_submodule(names.qkv[0])
            if names.interleaved:
                return [(shared, Interleaved(heads, head, index)) for index in range(3)]
            starts = (0, heads * head, (heads + key_heads) * head)
            counts = (heads, key_heads, key_heads)
            return [(shared, Heads(n, head, start)) for n, start in zip(counts, starts, strict=True)]
        paths = (names.query or names.qkv[0], names.key or names.qkv[1], names.qkv[2])
        counts = (heads, key_heads, key_heads)
        return [(attention.get_submodule(path), Heads(n, head)) for path, n in zip(paths, counts, strict=True)]

    @override
    def find_parts(self) -> Sequence[PartView]:
        names = self.names
        views = [self._view(Part.EMBEDDING, None, self.model, names.embedding)]
        for layer, block in enumerate(self._blocks()):
            attention, mlp = self._attention(block), block.get_submodule(names.mlp)
            if names.attn_norm is not None:
                views.append(self._view(Part.ATTN_NORM, layer, block, names.attn_norm))
            for part, rows in zip((Part.Q, Part.K, Part.V), self._rows(attention), strict=True):
                path = names.qkv[0 if len(names.qkv) == 1 else (Part.Q, Part.K, Part.V).index(part)]
                views.append(self._view(part, layer, attention, path, rows))
            views.append(self._view(Part.PROJ, layer, attention, names.proj))
            if names.mlp_norm is not None:
                views.append(self._view(Part.MLP_NORM, layer, block, names.mlp_norm))
            views += [self._view(Part.FC1, layer, mlp, path) for path in names.fc1]
            views.append(self._view(Part.FC2, layer, mlp, names.fc2))
        if names.final_norm is not None:
            views.append(self._view(Part.FINAL_NORM, None, self.model, names.final_norm))
        return [*views, self._view(Part.HEAD, None, self.model, names.head)]

    def _rows(self, attention: nn.Module) -> list[slice | torch.Tensor | None]:
        """The rows of a shared QKV matrix that belong to queries, keys and values; None for separate matrices."""
        names, shape = self.names, self.shape(attention)
        if len(names.qkv) > 1:
            return [None, None, None]
        heads = shape.num_heads
        key_heads = shape.num_key_heads
        head = shape.head_width
        if names.interleaved:
            numbers = torch.arange(3 * heads * head, device="cpu").view(heads, 3, head)
            return [numbers[:, index].flatten() for index in range(3)]
        ends = (heads * head, (heads + key_heads) * head, (heads + 2 * key_heads) * head)
        return [slice(0, ends[0]), slice(ends[0], ends[1]), slice(ends[1], ends[2])]

    @override
    def find_points(self) -> Sequence[Point]:
        names = self.names
        points = [Point("embedding_output", None, self._blocks()[0], "input")]
        norms = {"qkv": names.attn_norm, "fc1": names.mlp_norm}
        without_norm = [] if names.norms_without_module else [name for name, norm in norms.items() if norm is None]
        for layer, block in enumerate(self._blocks()):
            attention, mlp = self._attention(block), block.get_submodule(names.mlp)
            proj, fc2 = attention.get_submodule(names.proj), mlp.get_submodule(names.fc2)
            qkv = [attention.get_submodule(path) for path in names.qkv]
            fc1 = [mlp.get_submodule(path) for path in names.fc1]
            points += block_points(
                layer,
                {
                    "qkv": (qkv, attention, "input"),
                    "proj": ([proj], proj, "input"),
                    "fc1": (fc1, mlp, "input"),
                    "fc2": ([fc2], fc2, "input"),
                },
                shared=without_norm,
            )
            points.append(Point("residual", layer, block, "output"))
        head = self._at(names.head)
        final = (head, "input") if names.final_norm is None else (self._at(names.final_norm), "output")
        return [*points, Point("final_norm_output", None, *final), Point("logits", None, head, "output")]

    @override
    def find_attentions(self) -> Sequence[AttentionPoint]:
        points: list[AttentionPoint] = []
        for layer, block in enumerate(self._blocks()):
            attention = self._attention(block)
            scores, weights = (self._slot(attention, site, self.seam) for site in (Site.SCORES, Site.WEIGHTS))
            points.append(
                AttentionPoint(
                    layer,
                    self.shape(attention).num_heads,
                    lambda watcher, attention=attention: self.seam.watch(attention, watcher),
                    scores,
                    weights,
                    self.cap(attention),
                )
            )
        return points

    def _at(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    def _blocks(self) -> list[nn.Module]:
        return list(self._at(self.names.blocks).children())

    def _attention(self, block: nn.Module) -> nn.Module:
        return block.get_submodule(self.names.attention)

    def _slot(self, owner: nn.Module, site: Site, mount: Mount) -> Slot:
        mounted = owner._modules.get(PREFIX + site)
        if isinstance(mounted, ForeignSlot):
            mounted.bind(owner)
            return mounted
        # One slot per place even before it is mounted, because two interventions may edit the same site.
        return self._slots.setdefault((id(owner), site), ForeignSlot(site, owner, mount))

    def _view(
        self, part: Part, layer: int | None, root: nn.Module, path: str, rows: slice | torch.Tensor | None = None
    ) -> PartView:
        parent, _, attribute = path.rpartition(".")
        linear = part not in (Part.ATTN_NORM, Part.MLP_NORM, Part.FINAL_NORM, Part.EMBEDDING, Part.HEAD)
        return PartView(part, layer, root.get_submodule(parent), attribute, rows, self.names.transposed and linear)
