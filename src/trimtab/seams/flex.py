"""Attention of a module that calls ``flex_attention``, in eager mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from typing_extensions import override

from trimtab.seams.attend import SeamMount, show

Spot = tuple[dict[str, Any], str]


class FlexSeam(SeamMount):
    """Replaces the name ``flex_attention`` while the ``forward`` of its module runs; for watchers only.

    Args:
        attentions: the modules.
        spots: namespaces and names under which the code of the modules finds the function.
    """

    def __init__(self, attentions: Sequence[nn.Module], spots: Sequence[Spot]) -> None:
        super().__init__(attentions)
        self._spots = tuple(spots)

    @override
    def open(self, attention: nn.Module) -> None:
        attention.forward = partial(_forward, attention, self._spots)

    @override
    def close(self, attention: nn.Module) -> None:
        attention.__dict__.pop("forward", None)


def _forward(attention: nn.Module, spots: Sequence[Spot], *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():  # a graph has the function itself, whose inputs no hook sees
        return type(attention).forward(attention, *args, **kwargs)
    before = [space[name] for space, name in spots]
    for (space, name), function in zip(spots, before, strict=True):
        space[name] = partial(_shown, attention, function)
    try:
        return type(attention).forward(attention, *args, **kwargs)
    finally:
        for (space, name), function in zip(spots, before, strict=True):
            space[name] = function


def _shown(
    attention: nn.Module,
    function: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor] | None = None,
    block_mask: Any = None,
    scale: float | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    mask = _mask(query, key, block_mask)
    if score_mod is not None:
        mask = _added(query, key, score_mod, factor).masked_fill_(~mask, -math.inf)
    show(attention, query, key, mask, factor)
    return function(query, key, value, score_mod, block_mask, scale, *args, **kwargs)


@torch.no_grad()
def _added(query: Tensor, key: Tensor, score_mod: Callable[..., Tensor], factor: float) -> Tensor:
    """What ``score_mod`` adds to every score, (B, H, T, S), in at least float32; minus infinity hides a key.

    The function itself holds a tensor of this shape in eager mode.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    keys = key.to(dtype).repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query.to(dtype) @ keys.mT * factor
    modified = score_mod
    for axis in (4, 3, 2, 1):  # key, query, head, batch: score_mod takes one score and its four indices
        modified = vmap(modified, in_dims=(0, *(0 if index == axis else None for index in (1, 2, 3, 4))))
    return modified(scores, *(torch.arange(length, device=query.device) for length in scores.shape)) - scores


def _mask(query: Tensor, key: Tensor, block_mask: Any) -> Tensor:
    """What ``mask_mod`` makes visible, (B, H, T, S)."""
    T, S = query.shape[2], key.shape[2]
    if block_mask is None:
        return query.new_ones(1, 1, T, S, dtype=torch.bool)
    from torch.nn.attention.flex_attention import create_mask

    B, H = block_mask.shape[:2]
    return create_mask(block_mask.mask_mod, B, H, T, S, device=query.device)
