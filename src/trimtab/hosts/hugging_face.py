"""The host shared by all families of transformers. Their attention registry lets one model use another function."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import SiteUnavailableError
from trimtab.hosts.attention_seam import SeamMount, attend
from trimtab.hosts.decoder import DecoderHost, Shape

OURS = "trimtab_"
BASES = ("eager", "sdpa")


class HuggingFaceHost(DecoderHost):
    """A causal language model of the transformers library.

    Attributes:
        model_types: values of ``config.model_type`` that identify the family.
    """

    model_types: frozenset[str]

    @override
    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        config = getattr(model, "config", None)
        named = getattr(config, "model_type", None) in cls.model_types
        return named and "transformers" in sys.modules and type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))

    @override
    def shape(self, attention: nn.Module) -> Shape:
        config = cast(Any, self.model).config
        heads = int(config.num_attention_heads)
        width = getattr(attention, "head_dim", None) or config.hidden_size // heads
        return Shape(heads, int(getattr(config, "num_key_value_heads", None) or heads), int(width))

    @override
    def make_seam(self, attentions: Sequence[nn.Module]) -> SeamMount:
        return RegistrySeam(attentions)

    @override
    def cap(self, attention: nn.Module) -> float | None:
        return cast("float | None", getattr(attention, "attn_logit_softcapping", None))


class RegistrySeam(SeamMount):
    """Names our attention function in the configuration of the model while any of its layers needs the function."""

    @override
    def open(self, attention: nn.Module) -> None:
        config = cast(Any, attention).config
        base = _name(config).removeprefix(OURS)
        if base not in BASES:
            raise SiteUnavailableError(
                f"the attention implementation '{base}' hides its masks and windows, so scores cannot be reached; "
                "call model.set_attn_implementation('sdpa') first"
            )
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

    weights: Tensor | None = None

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        nonlocal weights
        out, weights = family_attention(
            module, q, k, v, attention_mask, scaling=scaling, dropout=dropout, **cap, **kwargs
        )
        return out.transpose(1, 2)

    heads = attend(module, query, key, value, attention_mask, scale, kernel, cap=softcap, dropout=dropout)
    return heads.transpose(1, 2).contiguous(), weights  # None if the kernel returns no weights, or an edit bypasses it


def _function(base: str, module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if base != "eager":
        return ALL_ATTENTION_FUNCTIONS[base]
    for kind in type(module).__mro__:  # a family defines its eager function in the module of its class
        function = getattr(sys.modules[kind.__module__], "eager_attention_forward", None)
        if function is not None:
            return function
    raise LookupError(f"the module that defines {type(module).__name__} has no function eager_attention_forward")
