"""GPT-NeoX and Pythia: one QKV matrix, whose rows are ordered by head."""

from __future__ import annotations

from trimtab.hosts.decoder import Names
from trimtab.hosts.hugging_face import HuggingFaceHost


class GPTNeoXHost(HuggingFaceHost):
    """GPT-NeoX and Pythia."""

    family = "GPT-NeoX, Pythia"
    model_types = frozenset({"gpt_neox"})
    names = Names(
        blocks="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        head="lm_head",
        attention="attention",
        mlp="mlp",
        attn_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
        attn_out="post_attention_dropout",
        mlp_out="post_mlp_dropout",
        qkv=("query_key_value",),
        proj="dense",
        fc1=("dense_h_to_4h",),
        fc2="dense_4h_to_h",
        interleaved=True,
    )
