"""Explicit attention on the query rows that a reading looks at: scores, what is visible, weights, after every edit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from trimtab.host import AttentionPoint
from trimtab.probe import spread

BLOCK = 1 << 19  # scores held at a time
INVISIBLE = -3e4


def query_rows(
    point: AttentionPoint, q_BHTK: Tensor, k_BGSK: Tensor, mask: Tensor | None, scale: float, num_rows: int | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of (scores BHRS after edits, visible, weights BHRS after edits), in at least float32.

    Args:
        point: the layer, for its edits and its cap.
        q_BHTK: rotated queries.
        k_BGSK: rotated keys.
        scale: factor of the scores.
        mask: None is causal, aligned at the last key; boolean is True where visible; else added to the scores.
        num_rows: how many query positions, always the same ones for a length; None for all.
    """
    B, H, T, _ = q_BHTK.shape
    S = k_BGSK.shape[2]
    everything = num_rows is None or num_rows >= T
    rows = torch.arange(T, device=q_BHTK.device) if everything else spread(T, num_rows or 1, q_BHTK.device)
    dtype = torch.promote_types(q_BHTK.dtype, torch.float32)
    groups = H // k_BGSK.shape[1]
    k_BHKS = (k_BGSK.to(dtype).repeat_interleave(groups, dim=1) if groups > 1 else k_BGSK.to(dtype)).mT
    for some in rows.split(max(1, BLOCK // (B * H * S))):
        s_BHRS = q_BHTK[:, :, some].to(dtype) @ k_BHKS * scale
        if point.cap is not None:
            s_BHRS = point.cap * torch.tanh(s_BHRS / point.cap)
        for edit in point.scores:
            s_BHRS = edit(s_BHRS)
        for listener in point.scores.listeners:
            listener.hear(s_BHRS)
        added, visible = _mask_of(mask, some, T, S, s_BHRS)
        biased = s_BHRS if added is None else s_BHRS + added
        w_BHRS = biased.masked_fill(~visible, -math.inf).softmax(-1)
        w_BHRS = w_BHRS.masked_fill(~visible.any(-1, keepdim=True), 0.0)  # a row that sees nothing
        for edit in point.weights:
            w_BHRS = edit(w_BHRS)
        yield biased, visible.expand_as(s_BHRS), w_BHRS


def _mask_of(mask: Tensor | None, rows: Tensor, T: int, S: int, like: Tensor) -> tuple[Tensor | None, Tensor]:
    if mask is None:
        keys = torch.arange(S, device=like.device)
        return None, (keys <= rows[:, None] + (S - T))[None, None]
    some = mask[..., rows, :S] if mask.shape[-2] > 1 else mask[..., :S]
    if some.dtype is torch.bool:
        return None, some
    # Families write "invisible" as minus infinity or as the lowest number of some dtype, float16's being the highest
    # of them; a weight of exp(-30000) is 0 in any.
    visible = some > INVISIBLE
    return some.to(like.dtype).masked_fill(~visible, 0.0), visible
