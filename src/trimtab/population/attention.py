"""Fused attention under ``vmap``: the population is folded into the batch.

``scaled_dot_product_attention`` has no batching rule of its own, so that ``vmap`` would call it once for each model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

_FUSED = F.scaled_dot_product_attention


class FoldedAttention(TorchFunctionMode):
    """A block in which fused attention takes a population; dropout in it is refused."""

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _attention(*args, **(kwargs or {})) if func is _FUSED else func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p:
        raise RuntimeError("attention with dropout draws other numbers in a population")
    return cast(Tensor, _Folded.apply(query, key, value, attn_mask, is_causal, scale, enable_gqa))


class _Folded(torch.autograd.Function):
    """Its ``vmap`` computes with the folded tensors, and autograd records what happens there."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None, gqa: bool
    ) -> Tensor:
        return _FUSED(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=gqa)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        ctx.settings = [None if isinstance(x, Tensor) else x for x in inputs]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("attention of a population is differentiated outside of vmap")

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any,
        in_dims: tuple[int | None, ...],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        scale: float | None,
        gqa: bool,
    ) -> tuple[Tensor, int]:
        count = info.batch_size
        q, k, v = (_led(x, dim, count) for x, dim in zip((q, k, v), in_dims, strict=False))
        if mask is not None and (in_dims[3] is not None or mask.ndim > 2):
            mask = _led(mask, in_dims[3], count)
            mask = mask.reshape(count, *(1,) * (q.ndim - mask.ndim), *mask.shape[1:])
            mask = mask.expand(count, q.shape[1], *mask.shape[2:]).flatten(0, 1)
        out = _FUSED(
            q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask, is_causal=causal, scale=scale,
            enable_gqa=gqa,
        )  # fmt: skip
        return out.unflatten(0, (count, q.shape[1])), 0


def _led(x: Tensor, dim: int | None, count: int) -> Tensor:
    """The tensor with the population as its first dimension."""
    return x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)
