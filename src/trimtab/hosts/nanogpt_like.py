"""Models laid out like nanoGPT: a fused ``c_attn``, and a direct call of torch's attention function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from trimtab.host import SiteUnavailableError
from trimtab.hosts.attention_seam import SeamMount, attend
from trimtab.hosts.decoder import DecoderHost, Shape
from trimtab.hosts.gpt2 import GPT2Host


class NanoGPTHost(DecoderHost):
    """A model laid out like nanoGPT: ``transformer.h`` holds blocks with ``attn.c_attn`` and ``mlp.c_fc``."""

    family = "nanoGPT-like"
    names = replace(GPT2Host.names, transposed=False)

    @override
    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        names = {name for name, _ in model.named_modules()}
        wanted = {"transformer.wte", "transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc", "lm_head"}
        return wanted <= names and isinstance(model.get_submodule("transformer.h.0.attn.c_attn"), nn.Linear)

    @override
    def shape(self, attention: nn.Module) -> Shape:
        heads, width = cast(int, attention.n_head), cast(nn.Linear, attention.c_attn).in_features
        return Shape(heads, heads, width // heads)

    @override
    def make_seam(self, attentions: Sequence[nn.Module]) -> SeamMount:
        return InterceptingSeam(attentions)


class InterceptingSeam(SeamMount):
    """Intercepts the call of ``scaled_dot_product_attention`` inside the forward of an attention layer."""

    @override
    def open(self, attention: nn.Module) -> None:
        if getattr(attention, "flash", True) is False:
            raise SiteUnavailableError(
                f"{type(attention).__name__} computes attention explicitly (flash is False), so its scores cannot be "
                "reached; let it call torch.nn.functional.scaled_dot_product_attention"
            )
        attention.forward = partial(_forward, attention)

    @override
    def close(self, attention: nn.Module) -> None:
        attention.__dict__.pop("forward", None)


def _forward(attention: nn.Module, *args: Any, **kwargs: Any) -> Any:
    mode = _Intercept(attention)
    with mode:
        output = type(attention).forward(attention, *args, **kwargs)
    if not mode.caught:
        raise RuntimeError(
            f"{type(attention).__name__} did not call torch.nn.functional.scaled_dot_product_attention, so edits and "
            "probes of its scores would be silently inactive; remove them or let it call that function"
        )
    return output


class _Intercept(TorchFunctionMode):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.caught = False

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
    T, S = query.shape[2], key.shape[2]
    if mask is None and not is_causal:
        mask = query.new_ones(1, 1, dtype=torch.bool).expand(T, S)
    elif is_causal and T != S:  # torch aligns its causal mask at the first key, ``attend`` at the last
        mask = query.new_ones(T, S, dtype=torch.bool).tril()
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return attend(attention, query, key, value, mask, factor, kernel, dropout=dropout_p)
