"""Models laid out like nanochat: separate ``c_q``, ``c_k`` and ``c_v``, and norms that are no modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn
from typing_extensions import override

from trimtab.hosts.decoder import DecoderHost, Names, Shape
from trimtab.seams import InterceptingSeam, SeamMount


class NanochatHost(DecoderHost):
    """A model laid out like nanochat; queries and keys are normalised after rotary, and norms have no parameters."""

    family = "nanochat-like"
    built_in = frozenset({"qk_norm", "logit_cap"})
    names = Names(
        blocks="transformer.h",
        embedding="transformer.wte",
        final_norm=None,
        head="lm_head",
        attention="attn",
        mlp="mlp",
        attn_norm=None,
        mlp_norm=None,
        attn_out="attn",
        mlp_out="mlp",
        qkv=("c_q", "c_k", "c_v"),
        proj="c_proj",
        fc1=("c_fc",),
        fc2="c_proj",
        norms_without_module=True,
    )

    @override
    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        names = {name for name, _ in model.named_modules()}
        wanted = {"transformer.wte", "transformer.h.0.attn.c_q", "transformer.h.0.mlp.c_fc", "lm_head"}
        return wanted <= names and "transformer.h.0.ln_1" not in names

    @override
    def shape(self, attention: nn.Module) -> Shape:
        shape = cast(Any, attention)
        return Shape(shape.n_head, shape.n_kv_head, shape.head_dim)

    @override
    def make_seam(self, attentions: Sequence[nn.Module]) -> SeamMount:
        return InterceptingSeam(attentions)
