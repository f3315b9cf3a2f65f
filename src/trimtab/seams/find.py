"""The attention of any model, by the names of its modules, without a host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from torch import nn

from trimtab.host import AttentionPoint
from trimtab.seams.attend import SeamMount
from trimtab.seams.flex import FlexSeam
from trimtab.seams.intercepting import InterceptingSeam, computes_explicitly
from trimtab.seams.multihead import watching_multihead
from trimtab.seams.reach import FLEX, REGISTRY, SDPA, Hit, reached
from trimtab.seams.registry_seam import RegistrySeam, why_not


@dataclass(frozen=True, slots=True)
class Attentions:
    """What was found in a model.

    Attributes:
        readable: name of each module that computes attention, and its point.
        others: why attention of a module cannot be read, one sentence each.
    """

    readable: Sequence[tuple[str, AttentionPoint]]
    others: Sequence[str]


def find_attentions(model: nn.Module) -> Attentions:
    """The modules of a model whose attention can be read; the model stays as it is.

    These are ``nn.MultiheadAttention``, modules of transformers that use its attention registry, and modules whose code
    reaches ``scaled_dot_product_attention`` or ``flex_attention``.
    """
    readable: list[tuple[str, AttentionPoint]] = []
    others: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            readable.append((name, AttentionPoint(None, module.num_heads, watching_multihead(module))))
            continue
        hits = reached(module)
        if hits:
            found = _seam(module, hits)
            if isinstance(found, str):
                others.append(f"{name or type(module).__name__}: {found}")
            else:
                readable.append((name, _point(module, found)))
    return Attentions(readable, others)


def _seam(module: nn.Module, hits: Sequence[Hit]) -> SeamMount | str:
    """The seam of a module, or why there is none."""
    kinds = {kind for kind, _, _ in hits}
    if REGISTRY in kinds and hasattr(module, "config"):
        return why_not(module) or RegistrySeam([module])
    if "forward" in vars(module):
        return "its forward was replaced, so that attention in it is not read"
    if SDPA in kinds:
        return computes_explicitly(module) or InterceptingSeam([module])
    if FLEX in kinds:
        return FlexSeam([module], [(space, name) for kind, space, name in hits if kind == FLEX])
    return f"attention through {', '.join(sorted(kinds))} is not read"


def _point(module: nn.Module, seam: SeamMount) -> AttentionPoint:
    cap = cast("float | None", getattr(module, "attn_logit_softcapping", None))
    return AttentionPoint(None, None, partial(seam.watch, module), cap=cap)
