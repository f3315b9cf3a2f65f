"""Explicit attention for the query rows that a reading looks at: scores, visible keys and weights, after all edits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from trimtab.host import AttentionPoint
from trimtab.probe import spread

BLOCK = 1 << 19  # scores held at a time
INVISIBLE = -3e4  # an added mask below this hides a key; see _mask_of


def query_rows(
    point: AttentionPoint, q_BHTK: Tensor, k_BGSK: Tensor, mask: Tensor | None, scale: float, num_rows: int | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of (scores BHRS after edits, visible, weights BHRS after edits), in at least float32.

    Args:
        point: the layer, which has the edits of scores and weights and the soft cap.
        q_BHTK: rotated queries.
        k_BGSK: rotated keys.
        scale: factor of the scores.
        mask: None is causal, aligned at the last key; boolean is True where visible; else added to the scores.
        num_rows: how many query positions are looked at, the same ones for every tensor of a length; None for all.
    """
    B, H, T, _ = q_BHTK.shape
    S = k_BGSK.shape[2]
    rows = (
        torch.arange(T, device=q_BHTK.device)
        if num_rows is None or num_rows >= T
        else spread(T, num_rows, q_BHTK.device)
    )
    dtype = torch.promote_types(q_BHTK.dtype, torch.float32)
    groups = H // k_BGSK.shape[1]
    k_BHKS = (k_BGSK.to(dtype).repeat_interleave(groups, dim=1) if groups > 1 else k_BGSK.to(dtype)).mT
    for block in rows.split(max(1, BLOCK // (B * H * S))):
        s_BHRS = q_BHTK[:, :, block].to(dtype) @ k_BHKS * scale
        if point.cap is not None:
            s_BHRS = point.cap * torch.tanh(s_BHRS / point.cap)
        for edit in point.scores:
            s_BHRS = edit(s_BHRS)
        for listener in point.scores.listeners:
            listener.hear(s_BHRS)
        added, visible = _mask_of(mask, block, T, S, s_BHRS)
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
    of_rows = mask[..., rows, :S] if mask.shape[-2] > 1 else mask[..., :S]
    if of_rows.dtype is torch.bool:
        return None, of_rows
    # Families hide a key by minus infinity or by the lowest number of some dtype. The lowest number of float16, -65504,
    # is the highest of these; a weight of exp(-30000) is 0 in every dtype.
    visible = of_rows > INVISIBLE
    return of_rows.to(like.dtype).masked_fill(~visible, 0.0), visible
