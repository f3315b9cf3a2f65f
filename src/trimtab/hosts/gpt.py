"""Host of the reference GPT, which offers every site and every part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import nn
from typing_extensions import override

from trimtab.host import AttentionPoint, AttentionWatcher, Host, Part, PartView, Point, Site, Slot, Tap, block_points
from trimtab.models.gpt import GPT, Attention, Block

PER_HEAD = frozenset(
    {Site.QUERY, Site.KEY, Site.VALUE, Site.QUERY_ROTATED, Site.KEY_ROTATED, Site.SCORES, Site.WEIGHTS, Site.HEAD_OUT}
)


class GPTHost(Host):
    """Offers the sites and parts of ``trimtab.GPT``."""

    family = "trimtab GPT"

    @override
    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        return isinstance(model, GPT)

    @property
    def gpt(self) -> GPT:
        """The model, typed as ``GPT``."""
        return cast(GPT, self.model)

    @override
    def find_taps(self) -> Sequence[Tap]:
        gpt, config = self.gpt, self.gpt.config
        taps = [Tap(Site.EMBEDDING, None, gpt.embedding, config.width)]
        for layer, block in enumerate(gpt.blocks):
            heads = cast(Block, block).attn.num_heads
            taps += [
                Tap(site, layer, slot, width, heads if site in PER_HEAD else 0)
                for site, slot, width in _of_block(cast(Block, block))
            ]
        return [*taps, Tap(Site.LOGITS, None, gpt.logits, config.vocab_size)]

    @override
    def find_parts(self) -> Sequence[PartView]:
        gpt, width = self.gpt, self.gpt.config.width
        views = [PartView(Part.EMBEDDING, None, gpt, "token_embedding")]
        for layer, module in enumerate(gpt.blocks):
            block = cast(Block, module)
            views += [
                PartView(Part.ATTN_NORM, layer, block, "attn_norm"),
                PartView(Part.Q, layer, block.attn, "qkv", slice(0, width)),
                PartView(Part.K, layer, block.attn, "qkv", slice(width, 2 * width)),
                PartView(Part.V, layer, block.attn, "qkv", slice(2 * width, 3 * width)),
                PartView(Part.PROJ, layer, block.attn, "proj"),
                PartView(Part.MLP_NORM, layer, block, "mlp_norm"),
                PartView(Part.FC1, layer, block.mlp, "fc1"),
                PartView(Part.FC2, layer, block.mlp, "fc2"),
            ]
        return [
            *views,
            PartView(Part.FINAL_NORM, None, gpt, "final_norm"),
            PartView(Part.HEAD, None, gpt, "head"),
        ]

    @override
    def find_points(self) -> Sequence[Point]:
        gpt = self.gpt
        points = [Point("embedding_output", None, gpt.blocks[0], "input")]
        for layer, module in enumerate(gpt.blocks):
            block = cast(Block, module)
            linears = {"qkv": block.attn.qkv, "proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
            points += block_points(layer, {name: ([linear], linear, "input") for name, linear in linears.items()})
            points.append(Point("residual", layer, block, "output"))
        return [
            *points,
            Point("final_norm_output", None, gpt.final_norm, "output"),
            Point("logits", None, gpt.head, "output"),
        ]

    @override
    def find_attentions(self) -> Sequence[AttentionPoint]:
        attentions = [cast(Block, block).attn for block in self.gpt.blocks]
        return [
            AttentionPoint(layer, attn.num_heads, _watching(attn), attn.scores, attn.weights)
            for layer, attn in enumerate(attentions)
        ]


def _watching(attn: Attention) -> Callable[[AttentionWatcher], Callable[[], None]]:
    def watch(watcher: AttentionWatcher) -> Callable[[], None]:
        attn.watchers.append(watcher)
        return lambda: attn.watchers.remove(watcher) if watcher in attn.watchers else None

    return watch


def _of_block(block: Block) -> list[tuple[Site, Slot, int]]:
    attn, mlp = block.attn, block.mlp
    width = mlp.fc2.out_features
    hidden = mlp.fc2.in_features
    head = attn.proj.in_features // attn.num_heads
    return [
        (Site.ATTN_IN, block.attn_in, width),
        (Site.QUERY, attn.query, head),
        (Site.KEY, attn.key, head),
        (Site.VALUE, attn.value, head),
        (Site.QUERY_ROTATED, attn.query_rotated, head),
        (Site.KEY_ROTATED, attn.key_rotated, head),
        (Site.SCORES, attn.scores, 0),
        (Site.WEIGHTS, attn.weights, 0),
        (Site.HEAD_OUT, attn.head_out, head),
        (Site.ATTN_OUT, block.attn_out, width),
        (Site.RESIDUAL, block.attn_residual, width),
        (Site.MLP_IN, block.mlp_in, width),
        (Site.MLP_HIDDEN, mlp.hidden, hidden),
        (Site.MLP_OUT, block.mlp_out, width),
        (Site.RESIDUAL, block.mlp_residual, width),
    ]
