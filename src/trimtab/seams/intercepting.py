"""Attention of a module that calls torch's ``scaled_dot_product_attention`` itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from trimtab.host import SiteUnavailableError
from trimtab.seams.attend import SeamMount, attend, has_slots, show


class InterceptingSeam(SeamMount):
    """Intercepts the call of ``scaled_dot_product_attention`` inside the forward of an attention layer."""

    @override
    def open(self, attention: nn.Module) -> None:
        reason = computes_explicitly(attention)
        if reason is not None:
            raise SiteUnavailableError(f"{type(attention).__name__} {reason}")
        attention.forward = partial(_forward, attention)

    @override
    def close(self, attention: nn.Module) -> None:
        attention.__dict__.pop("forward", None)


def computes_explicitly(attention: nn.Module) -> str | None:
    """Why the scores of a module cannot be reached; None if they can."""
    if getattr(attention, "flash", True) is not False:
        return None
    return (
        "computes attention explicitly (flash is False), so its scores cannot be reached; let it call "
        "torch.nn.functional.scaled_dot_product_attention"
    )


def _forward(attention: nn.Module, *args: Any, **kwargs: Any) -> Any:
    mode = _Intercept(attention)
    with mode:
        output = type(attention).forward(attention, *args, **kwargs)
    if not mode.caught and has_slots(attention):  # a watcher that sees nothing is reported by its watch
        raise RuntimeError(
            f"{type(attention).__name__} did not call torch.nn.functional.scaled_dot_product_attention, so edits of "
            "its scores would be silently inactive; remove them or let it call that function"
        )
    return output


class _Intercept(TorchFunctionMode):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.caught = False

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.unflatten:  # it calls super(), which a compiler cannot follow from here
            return torch.unflatten(*args, **(kwargs or {}))
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.caught = True
        return _attention(self.attention, *args, **(kwargs or {}))


def _attention(
    attention: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    mask = attn_mask
    T, S = query.shape[-2], key.shape[-2]
    if mask is None and not is_causal:
        mask = query.new_ones(1, 1, dtype=torch.bool).expand(T, S)
    elif is_causal and T != S:  # torch aligns its causal mask at the first key, ``attend`` at the last
        mask = query.new_ones(T, S, dtype=torch.bool).tril()
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if query.ndim == 3 and not has_slots(attention):  # the heads are part of the batch
        rows = None if mask is None else mask[..., None, :, :] if mask.ndim == 3 else mask
        show(attention, query[:, None], key[:, None], rows, factor)
        return kernel(query, key, value)
    return attend(attention, query, key, value, mask, factor, kernel, dropout=dropout_p)
