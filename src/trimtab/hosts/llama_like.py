"""Llama and similar families: separate Q, K and V, a gated MLP, RMS norms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import nn

from trimtab.hosts.decoder import Names
from trimtab.hosts.hugging_face import HuggingFaceHost

LLAMA = Names(
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    attention="self_attn",
    mlp="mlp",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    attn_out="self_attn",
    mlp_out="mlp",
    qkv=("q_proj", "k_proj", "v_proj"),
    proj="o_proj",
    fc1=("gate_proj", "up_proj"),
    fc2="down_proj",
)


class LlamaHost(HuggingFaceHost):
    """Llama, Mistral and Qwen 2, of the transformers library."""

    family = "Llama, Mistral, Qwen 2"
    model_types = frozenset({"llama", "mistral", "qwen2"})
    names = LLAMA


class Qwen3Host(HuggingFaceHost):
    """Qwen 3: Llama with a norm of each query and key head."""

    family = "Qwen 3"
    model_types = frozenset({"qwen3"})
    built_in = frozenset({"qk_norm"})
    names = replace(LLAMA, query="q_norm", key="k_norm")


class Olmo2Host(HuggingFaceHost):
    """OLMo 2: norms of queries and keys over all heads together, and norms of branch outputs in place of pre-norms."""

    family = "OLMo 2"
    model_types = frozenset({"olmo2"})
    built_in = frozenset({"qk_norm", "branch_norm"})
    names = replace(
        LLAMA,
        query="q_norm",
        key="k_norm",
        attn_norm=None,
        mlp_norm=None,
        attn_out="post_attention_layernorm",
        mlp_out="post_feedforward_layernorm",
    )


class Gemma2Host(HuggingFaceHost):
    """Gemma 2: soft-capped scores, norms before and after each branch, embeddings scaled by the root of the width.

    A configuration without ``attn_logit_softcapping`` has no soft cap built in.
    """

    family = "Gemma 2"
    model_types = frozenset({"gemma2"})
    built_in = frozenset({"soft_cap", "branch_norm", "embedding_scale", "logit_cap"})
    names = replace(
        LLAMA,
        mlp_norm="pre_feedforward_layernorm",
        attn_out="post_attention_layernorm",
        mlp_out="post_feedforward_layernorm",
    )

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config = cast(Any, model).config
        if config.attn_logit_softcapping is None:
            self.built_in = self.built_in - {"soft_cap"}
        if config.final_logit_softcapping is None:
            self.built_in = self.built_in - {"logit_cap"}
