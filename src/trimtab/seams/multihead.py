"""Attention of ``nn.MultiheadAttention``: queries and keys are projected again from the inputs of the module.

The module keeps its fused path, which no function mode or replaced function would leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.host import AttentionWatcher


def watching_multihead(attention: nn.MultiheadAttention) -> Callable[[AttentionWatcher], Callable[[], None]]:
    """The function that adds a watcher of queries and keys to a module, and returns the function that removes it."""

    def watch(watcher: AttentionWatcher) -> Callable[[], None]:
        def show(module: nn.Module, args: Any, kwargs: Any) -> None:
            if args and args[0].ndim != 3:
                return  # unbatched input is not read
            with torch.no_grad():
                queries, keys, mask = _queries_and_keys(cast(nn.MultiheadAttention, module), args, kwargs)
                watcher(queries, keys, mask, queries.shape[-1] ** -0.5)

        return attention.register_forward_pre_hook(show, with_kwargs=True).remove

    return watch


def _queries_and_keys(attention: nn.MultiheadAttention, args: Any, kwargs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries BHTK, keys BHSK and the additive mask; projected again, because torch's layer does not expose them."""
    names = (
        "query",
        "key",
        "value",
        "key_padding_mask",
        "need_weights",
        "attn_mask",
        "average_attn_weights",
        "is_causal",
    )
    given = dict(zip(names, args, strict=False)) | kwargs
    query, key = given["query"], given["key"]
    if not attention.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    width, bias = attention.embed_dim, cast("Tensor | None", attention.in_proj_bias)
    fused = cast("Tensor | None", attention.in_proj_weight)
    if fused is not None:
        q_weight, k_weight = fused[:width], fused[width : 2 * width]
    else:
        q_weight, k_weight = cast(Tensor, attention.q_proj_weight), cast(Tensor, attention.k_proj_weight)
    q = F.linear(query, q_weight, None if bias is None else bias[:width])
    k = F.linear(key, k_weight, None if bias is None else bias[width : 2 * width])
    q_BHTK = q.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    k_BHSK = k.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    mask = q_BHTK.new_zeros(1, 1, q_BHTK.shape[2], k_BHSK.shape[2])
    hidden, padding = given.get("attn_mask"), given.get("key_padding_mask")
    if hidden is not None:
        added = torch.zeros_like(mask[0, 0]).masked_fill(hidden, -torch.inf) if hidden.dtype is torch.bool else hidden
        mask = mask + (added.unflatten(0, (-1, attention.num_heads)) if added.ndim == 3 else added)
    if padding is not None:
        added = (
            q_BHTK.new_zeros(padding.shape).masked_fill(padding, -torch.inf) if padding.dtype is torch.bool else padding
        )
        mask = mask + added[:, None, None]
    return q_BHTK, k_BHSK, mask
