"""Attention of a module that calls ``flex_attention``, in eager mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
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
    # A score_mod is any function of a score: what it makes of the scores is not known outside of the kernel.
    if score_mod is None:
        mask = _mask(query, key, block_mask)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        show(attention, query, key, mask, factor)
    return function(query, key, value, score_mod, block_mask, scale, *args, **kwargs)


def _mask(query: Tensor, key: Tensor, block_mask: Any) -> Tensor:
    """What ``mask_mod`` makes visible, (B, H, T, S)."""
    T, S = query.shape[2], key.shape[2]
    if block_mask is None:
        return query.new_ones(1, 1, T, S, dtype=torch.bool)
    from torch.nn.attention.flex_attention import create_mask

    B, H = block_mask.shape[:2]
    return create_mask(block_mask.mask_mod, B, H, T, S, device=query.device)
