"""Attention of models of transformers: their attention registry lets one model use another function."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import SiteUnavailableError
from trimtab.seams.attend import SeamMount, attend

OURS = "trimtab_"
BASES = ("eager", "sdpa")


class RegistrySeam(SeamMount):
    """Names our attention function in the configuration of the model while any of its layers needs the function."""

    @override
    def open(self, attention: nn.Module) -> None:
        config = cast(Any, attention).config
        base = _name(config).removeprefix(OURS)
        reason = why_not(attention)
        if reason is not None:
            raise SiteUnavailableError(reason)
        if not _name(config).startswith(OURS):
            config._attn_implementation_internal = _registered(base)
        _OPEN.setdefault(id(config), weakref.WeakSet()).add(attention)
        attention.register_forward_pre_hook(_STILL_OURS)

    @override
    def close(self, attention: nn.Module) -> None:
        config = cast(Any, attention).config
        for key in [key for key, hook in attention._forward_pre_hooks.items() if isinstance(hook, _StillOurs)]:
            del attention._forward_pre_hooks[key]
        # Models made from one configuration object share it; the last user among all of them restores it.
        others = _OPEN.get(id(config), weakref.WeakSet[nn.Module]())
        others.discard(attention)
        if _name(config).startswith(OURS) and not others:
            config._attn_implementation_internal = _name(config).removeprefix(OURS)


def why_not(attention: nn.Module) -> str | None:
    """Why scores of a layer cannot be reached; None if they can."""
    base = _name(cast(Any, attention).config).removeprefix(OURS)
    if base not in BASES:
        return (
            f"the attention implementation '{base}' hides its masks and windows, so scores cannot be reached; "
            "call model.set_attn_implementation('sdpa') first"
        )
    if getattr(attention, "sinks", None) is not None:
        return "its learned sinks take part in the softmax, which is not supported"
    return None


class _StillOurs:
    """A hook that raises if the attention implementation was changed while the seam is open."""

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not _name(cast(Any, module).config).startswith(OURS):
            raise RuntimeError(
                "the attention implementation was changed while methods or probes use it, so they would be "
                "inactive; choose it before they are installed"
            )


_STILL_OURS = _StillOurs()
_OPEN: dict[int, weakref.WeakSet[nn.Module]] = {}


def _name(config: Any) -> str:
    return config._attn_implementation or "eager"


def _registered(base: str) -> str:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    name = OURS + base
    AttentionInterface.register(name, partial(_attention, base))
    if base in ALL_MASK_ATTENTION_FUNCTIONS:
        # The mask keeps its form, so that the kernel of the family gets its usual input.
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def _attention(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    family_attention = _function(base, module)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    cap = {} if softcap is None else {"softcap": softcap}

    if attention_mask is None and not _is_causal(base, module, query, kwargs):
        mask = query.new_ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool)
    else:
        mask = attention_mask
    weights: Tensor | None = None

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        nonlocal weights
        out, weights = family_attention(
            module, q, k, v, attention_mask, scaling=scaling, dropout=dropout, **cap, **kwargs
        )
        return out.transpose(1, 2)

    def keep(explicit: Tensor) -> None:
        nonlocal weights
        weights = explicit

    heads = attend(module, query, key, value, mask, scale, kernel, cap=softcap, dropout=dropout, keep=keep)
    return heads.transpose(1, 2).contiguous(), weights  # None if a kernel ran that returns none


def _is_causal(base: str, module: nn.Module, query: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether the kernel hides later keys where it is given no mask; an eager function of a family hides none."""
    chosen = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if chosen is None else chosen
    return base == "sdpa" and bool(causal) and query.shape[2] > 1


def _function(base: str, module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if base != "eager":
        return ALL_ATTENTION_FUNCTIONS[base]
    for kind in type(module).__mro__:  # a family defines its eager function in the module of its class
        function = getattr(sys.modules[kind.__module__], "eager_attention_forward", None)
        if function is not None:
            return function
    raise LookupError(f"the module that defines {type(module).__name__} has no function eager_attention_forward")
