"""Host of ``nn.TransformerEncoder`` and ``nn.TransformerEncoderLayer``, for probes only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn
from typing_extensions import override

from trimtab.host import AttentionPoint, Host, Part, PartView, Point, Tap
from trimtab.seams import watching_multihead


class TorchEncoderHost(Host):
    """Offers parts and points. It offers no sites, because torch's layer does not expose its attention."""

    family = "torch.nn.TransformerEncoder (probes only)"
    only_watched = True

    @override
    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        return isinstance(model, nn.TransformerEncoder | nn.TransformerEncoderLayer)

    @property
    def layers(self) -> list[nn.TransformerEncoderLayer]:
        """The layers, in order."""
        layers = self.model.layers if isinstance(self.model, nn.TransformerEncoder) else [self.model]
        return cast("list[nn.TransformerEncoderLayer]", list(cast(Any, layers)))

    @override
    def find_taps(self) -> Sequence[Tap]:
        return ()

    @override
    def find_parts(self) -> Sequence[PartView]:
        views: list[PartView] = []
        for layer, block in enumerate(self.layers):
            views += [
                PartView(Part.PROJ, layer, block.self_attn, "out_proj"),
                PartView(Part.FC1, layer, block, "linear1"),
                PartView(Part.FC2, layer, block, "linear2"),
            ]
        return views

    @override
    def find_points(self) -> Sequence[Point]:
        points: list[Point] = []
        for layer, block in enumerate(self.layers):
            points += [
                # The projections are not called as modules, so only input and output of the attention can be read.
                # In a post-norm block the input of a branch is the residual stream, which has a gradient of its own.
                Point("qkv_input", layer, block.self_attn, "input", block.norm_first),
                Point("proj_output", layer, block.self_attn, "output"),
                Point("fc1_input", layer, block.linear1, "input", block.norm_first),
                Point("fc1_output", layer, block.linear1, "output"),
                Point("fc2_input", layer, block.linear2, "input"),
                Point("fc2_output", layer, block.linear2, "output"),
                Point("residual", layer, block, "output"),
            ]
        return points

    @override
    def find_attentions(self) -> Sequence[AttentionPoint]:
        attentions = [block.self_attn for block in self.layers]
        return [
            AttentionPoint(layer, attn.num_heads, watching_multihead(attn)) for layer, attn in enumerate(attentions)
        ]
