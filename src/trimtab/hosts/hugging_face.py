"""The host shared by all families of transformers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

from torch import nn
from typing_extensions import override

from trimtab.hosts.decoder import DecoderHost, Shape
from trimtab.seams import RegistrySeam, SeamMount


class HuggingFaceHost(DecoderHost):
    """A causal language model of the transformers library.

    Attributes:
        model_types: values of ``config.model_type`` that identify the family.
    """

    model_types: frozenset[str]

    @override
    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        config = getattr(model, "config", None)
        named = getattr(config, "model_type", None) in cls.model_types
        return named and "transformers" in sys.modules and type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))

    @override
    def shape(self, attention: nn.Module) -> Shape:
        config = cast(Any, self.model).config
        heads = int(config.num_attention_heads)
        width = getattr(attention, "head_dim", None) or config.hidden_size // heads
        return Shape(heads, int(getattr(config, "num_key_value_heads", None) or heads), int(width))

    @override
    def make_seam(self, attentions: Sequence[nn.Module]) -> SeamMount:
        return RegistrySeam(attentions)

    @override
    def cap(self, attention: nn.Module) -> float | None:
        return cast("float | None", getattr(attention, "attn_logit_softcapping", None))
