"""Explicit attention in blocks of query rows: scores, visible keys and weights, after all edits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from trimtab.host import AttentionPoint

BLOCK = {"cpu": 1 << 19, "cuda": 1 << 26}  # scores held at a time; on a CPU they stay in the cache
INVISIBLE = -3e4  # an added mask below this hides a key; see _mask_of


def query_rows(
    point: AttentionPoint, q_BHTK: Tensor, k_BGSK: Tensor, mask: Tensor | None, scale: float, rows_BR: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of (scores BHRS after edits, visible, weights BHRS after edits), in at least float32.

    Scores of hidden keys are minus infinity.

    Args:
        point: the layer, which has the edits of scores and weights and the soft cap.
        q_BHTK: rotated queries.
        k_BGSK: rotated keys.
        scale: factor of the scores.
        mask: None is causal, aligned at the last key; boolean is True where visible; else added to the scores.
        rows_BR: the query positions of each sequence that are looked at.
    """
    k_BHKS = _keys(q_BHTK, k_BGSK)
    blocks: list[tuple[Tensor, Tensor, Tensor]] = []
    for block in rows_BR.split(_rows_at_a_time(q_BHTK, k_BHKS), dim=1):
        q_BHRK = q_BHTK.take_along_dim(block[:, None, :, None], 2)
        biased, visible = _scores(point, q_BHRK, k_BHKS, mask, scale, block, q_BHTK.shape[2])
        hidden = biased.masked_fill(~visible, -math.inf)
        w_BHRS = hidden.softmax(-1)
        if mask is not None:
            w_BHRS = w_BHRS.masked_fill(~visible.any(-1, keepdim=True), 0.0)  # a row that sees nothing
        for edit in point.weights:
            w_BHRS = edit(w_BHRS)
        blocks.append((hidden, visible.expand_as(biased), w_BHRS))
    return blocks


def all_scores(
    point: AttentionPoint,
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    mask: Tensor | None,
    scale: float,
    valid: Tensor | None = None,
) -> Iterator[Tensor]:
    """The scores of every query row in blocks BHRS, minus infinity where they do not count.

    Scores do not count where a key is hidden, where the query is padding (``valid`` (B, T) is false), and where they
    are not finite. Keys that no row of a block sees may be left out. For the other arguments see ``query_rows``.
    """
    T = q_BHTK.shape[2]
    k_BHKS = _keys(q_BHTK, k_BGSK)
    behind = k_BHKS.shape[3] - T
    size = _rows_at_a_time(q_BHTK, k_BHKS)
    for start in range(0, T, size):
        end = min(T, start + size)
        rows = torch.arange(start, end, device=q_BHTK.device)[None]
        keys = k_BHKS[..., : max(1, end + behind)] if mask is None else k_BHKS
        scores, visible = _scores(point, q_BHTK[:, :, start:end], keys, mask, scale, rows, T, behind)
        if valid is not None:
            visible = visible & valid[:, None, start:end, None]
        edited = point.scores.active  # an edit or a listener may keep the tensor
        scores = scores.masked_fill(~visible, -math.inf) if edited else scores.masked_fill_(~visible, -math.inf)
        # Where reading a number back is a transfer, every block is searched for scores that are not finite.
        if scores.device.type != "cpu" or not bool(scores.amax() < math.inf):
            scores = scores.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
        yield scores


def _keys(q_BHTK: Tensor, k_BGSK: Tensor) -> Tensor:
    dtype = torch.promote_types(q_BHTK.dtype, torch.float32)
    groups = q_BHTK.shape[1] // k_BGSK.shape[1]
    return (k_BGSK.to(dtype).repeat_interleave(groups, dim=1) if groups > 1 else k_BGSK.to(dtype)).mT


def _rows_at_a_time(q_BHTK: Tensor, k_BHKS: Tensor) -> int:
    B, H, _, S = k_BHKS.shape
    return max(1, BLOCK.get(q_BHTK.device.type, BLOCK["cuda"]) // (B * H * S))


def _scores(
    point: AttentionPoint,
    q_BHRK: Tensor,
    k_BHKS: Tensor,
    mask: Tensor | None,
    scale: float,
    rows_BR: Tensor,
    T: int,
    behind: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores BHRS after edits and an added mask, and which of them count."""
    s_BHRS = q_BHRK.to(k_BHKS.dtype) @ k_BHKS * scale
    if point.cap is not None:
        s_BHRS = point.cap * torch.tanh(s_BHRS / point.cap)
    for edit in point.scores:
        s_BHRS = edit(s_BHRS)
    for listener in point.scores.listeners:
        listener.hear(s_BHRS)
    S = k_BHKS.shape[3]
    added, visible = _mask_of(mask, rows_BR, S, S - T if behind is None else behind, s_BHRS)
    return s_BHRS if added is None else s_BHRS + added, visible


def _mask_of(mask: Tensor | None, rows_BR: Tensor, S: int, behind: int, like: Tensor) -> tuple[Tensor | None, Tensor]:
    if mask is None:
        keys = torch.arange(S, device=like.device)
        return None, (keys <= rows_BR[..., None] + behind)[:, None]
    whole = mask[(None,) * (4 - mask.ndim)][..., :S]
    of_rows = whole.take_along_dim(rows_BR[:, None, :, None], 2) if whole.shape[2] > 1 else whole
    if of_rows.dtype is torch.bool:
        return None, of_rows
    # Families hide a key by minus infinity or by the lowest number of some dtype. The lowest number of float16, -65504,
    # is the highest of these; a weight of exp(-30000) is 0 in every dtype.
    visible = of_rows > INVISIBLE
    return of_rows.to(like.dtype).masked_fill(~visible, 0.0), visible
