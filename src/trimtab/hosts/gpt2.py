"""GPT-2 of the transformers library: one QKV matrix, stored as (in, out)."""

from __future__ import annotations

from trimtab.hosts.decoder import Names
from trimtab.hosts.hugging_face import HuggingFaceHost


class GPT2Host(HuggingFaceHost):
    """GPT-2."""

    family = "GPT-2"
    model_types = frozenset({"gpt2"})
    names = Names(
        blocks="transformer.h",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        head="lm_head",
        attention="attn",
        mlp="mlp",
        attn_norm="ln_1",
        mlp_norm="ln_2",
        attn_out="attn",
        mlp_out="mlp",
        qkv=("c_attn",),
        proj="c_proj",
        fc1=("c_fc",),
        fc2="c_proj",
        transposed=True,
    )
