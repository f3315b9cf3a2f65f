"""Models laid out like nanoGPT: a fused ``c_attn``, and a direct call of torch's attention function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from torch import nn
from typing_extensions import override

from trimtab.hosts.decoder import DecoderHost, Shape
from trimtab.hosts.gpt2 import GPT2Host
from trimtab.seams import InterceptingSeam, SeamMount


class NanoGPTHost(DecoderHost):
    """A model laid out like nanoGPT: ``transformer.h`` holds blocks with ``attn.c_attn`` and ``mlp.c_fc``."""

    family = "nanoGPT-like"
    names = replace(GPT2Host.names, transposed=False)

    @override
    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        names = {name for name, _ in model.named_modules()}
        wanted = {"transformer.wte", "transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc", "lm_head"}
        return wanted <= names and isinstance(model.get_submodule("transformer.h.0.attn.c_attn"), nn.Linear)

    @override
    def shape(self, attention: nn.Module) -> Shape:
        heads, width = cast(int, attention.n_head), cast(nn.Linear, attention.c_attn).in_features
        return Shape(heads, heads, width // heads)

    @override
    def make_seam(self, attentions: Sequence[nn.Module]) -> SeamMount:
        return InterceptingSeam(attentions)
