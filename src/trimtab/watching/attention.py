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
    size = _rows_at_a_time(k_BHKS)
    T = q_BHTK.shape[2]
    return [
        _block(point, _multiplied(_of_rows(q_BHTK, block), k_BHKS), mask, scale, block, T)
        for block in rows_BR.split(size, dim=1)
    ]


def products(q_BHTK: Tensor, k_BGSK: Tensor, rows_BR: Tensor) -> Tensor:
    """The products BHRS of the queries of some rows with all keys, in at least float32; see ``query_rows``."""
    return _multiplied(_of_rows(q_BHTK, rows_BR), _keys(q_BHTK, k_BGSK))


def causal_rows(
    point: AttentionPoint, qk_BHRS: Tensor, scale: float, rows_BR: Tensor, T: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The blocks of ``query_rows`` of causal attention without edits, from products, which are overwritten.

    Args:
        point: see ``query_rows``.
        qk_BHRS: products of the queries of the rows with all keys.
        scale: factor of the scores.
        rows_BR: the query positions.
        T: number of all query positions.
    """
    size = _rows_at_a_time(qk_BHRS)
    for block, rows in zip(qk_BHRS.split(size, dim=2), rows_BR.split(size, dim=1), strict=True):
        yield _block(point, block, None, scale, rows, T)


def _block(
    point: AttentionPoint, qk_BHRS: Tensor, mask: Tensor | None, scale: float, rows_BR: Tensor, T: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One block of ``query_rows`` from products, which are overwritten."""
    biased, visible = _scores(point, qk_BHRS, mask, scale, rows_BR, qk_BHRS.shape[3] - T)
    hidden = _hidden(point, biased, visible)
    w_BHRS = hidden.softmax(-1)
    if mask is not None:
        w_BHRS = w_BHRS.masked_fill(~visible.any(-1, keepdim=True), 0.0)  # a row that sees nothing
    for edit in point.weights:
        w_BHRS = edit(w_BHRS)
    return hidden, visible.expand_as(biased), w_BHRS


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
    size = _rows_at_a_time(k_BHKS)
    for start in range(0, T, size):
        end = min(T, start + size)
        rows = torch.arange(start, end, device=q_BHTK.device)[None]
        keys = k_BHKS[..., : max(1, end + behind)] if mask is None else k_BHKS
        qk_BHRS = _multiplied(q_BHTK[:, :, start:end].to(keys.dtype), keys)
        scores, visible = _scores(point, qk_BHRS, mask, scale, rows, behind)
        if valid is not None:
            visible = visible & valid[:, None, start:end, None]
        scores = _hidden(point, scores, visible)
        # Where reading a number back is a transfer, every block is searched for scores that are not finite.
        if scores.device.type != "cpu" or not bool(scores.amax() < math.inf):
            scores = scores.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
        yield scores


def _keys(q_BHTK: Tensor, k_BGSK: Tensor) -> Tensor:
    dtype = torch.promote_types(q_BHTK.dtype, torch.float32)
    groups = q_BHTK.shape[1] // k_BGSK.shape[1]
    return (k_BGSK.to(dtype).repeat_interleave(groups, dim=1) if groups > 1 else k_BGSK.to(dtype)).mT


def _rows_at_a_time(like_BHXS: Tensor) -> int:
    B, H, _, S = like_BHXS.shape
    return max(1, BLOCK.get(like_BHXS.device.type, BLOCK["cuda"]) // (B * H * S))


def _of_rows(q_BHTK: Tensor, rows_BR: Tensor) -> Tensor:
    sequences = torch.arange(len(q_BHTK), device=q_BHTK.device)[:, None]
    q_BHRK = q_BHTK.transpose(1, 2)[sequences, rows_BR].transpose(1, 2)
    return q_BHRK.to(torch.promote_types(q_BHTK.dtype, torch.float32))


def _hidden(point: AttentionPoint, scores: Tensor, visible: Tensor) -> Tensor:
    """The scores, minus infinity where they do not count; in place unless an edit or a listener may keep them."""
    fill = scores.masked_fill if point.scores.active else scores.masked_fill_
    return fill(~visible, -math.inf)


def _multiplied(q_BHRK: Tensor, k_BHKS: Tensor) -> Tensor:
    """The product of both; on a CPU sequence by sequence, as torch would copy keys that lie apart in memory."""
    if q_BHRK.device.type != "cpu" or k_BHKS.mT.is_contiguous():
        return q_BHRK @ k_BHKS
    product = q_BHRK.new_empty(*q_BHRK.shape[:3], k_BHKS.shape[3])
    for q, k, out in zip(q_BHRK, k_BHKS, product, strict=True):
        torch.bmm(q, k, out=out)
    return product


def _scores(
    point: AttentionPoint, qk_BHRS: Tensor, mask: Tensor | None, scale: float, rows_BR: Tensor, behind: int
) -> tuple[Tensor, Tensor]:
    """Scores BHRS after edits and an added mask, and which of them count; the products are overwritten."""
    s_BHRS = qk_BHRS.mul_(scale)
    if point.cap is not None:
        s_BHRS = point.cap * torch.tanh(s_BHRS / point.cap)
    for edit in point.scores:
        s_BHRS = edit(s_BHRS)
    for listener in point.scores.listeners:
        listener.hear(s_BHRS)
    added, visible = _mask_of(mask, rows_BR, s_BHRS.shape[3], behind, s_BHRS)
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
