"""Attention with slots, which replaces the attention function of a family.

The kernel of the family is used unless scores or weights are edited.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.host import AttentionWatcher, Site, Slot
from trimtab.seams.foreign_slot import PREFIX, ForeignSlot

SITES = (Site.QUERY_ROTATED, Site.KEY_ROTATED, Site.SCORES, Site.WEIGHTS)
WATCHERS = "_trimtab_watchers"

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


class SeamMount(ABC):
    """Connects the attention slots of one model. A subclass defines how the function of its family is replaced."""

    def __init__(self, attentions: Sequence[nn.Module]) -> None:
        self.attentions = tuple(attentions)

    @abstractmethod
    def open(self, attention: nn.Module) -> None:
        """Route the attention of this layer through ``attend``."""

    @abstractmethod
    def close(self, attention: nn.Module) -> None:
        """Restore the original attention function of the layer."""

    def mount(self, owner: nn.Module, slot: ForeignSlot) -> None:
        if not users(owner):
            self.open(owner)

    def unmount(self, owner: nn.Module, slot: ForeignSlot) -> None:
        if users(owner) <= 1:
            self.close(owner)

    def watch(self, attention: nn.Module, watcher: AttentionWatcher) -> Callable[[], None]:
        """Add a watcher of rotated queries and keys; returns the function that removes it."""
        if not users(attention):
            self.open(attention)
        attention.__dict__.setdefault(WATCHERS, []).append(watcher)

        def take_away() -> None:
            watchers = attention.__dict__.get(WATCHERS, [])
            if watcher in watchers:
                watchers.remove(watcher)
            if not watchers:
                attention.__dict__.pop(WATCHERS, None)
            if not users(attention):
                self.close(attention)

        return take_away


def users(attention: nn.Module) -> int:
    """Number of slots and watchers that use the seam of a layer."""
    slots = sum(PREFIX + site in attention._modules for site in SITES)
    return slots + len(attention.__dict__.get(WATCHERS, ()))


def show(attention: nn.Module, q_BHTK: Tensor, k_BGSK: Tensor, mask: Tensor | None, scale: float) -> None:
    """Call the watchers of a layer; see ``AttentionWatcher``."""
    for watch in attention.__dict__.get(WATCHERS, ()):
        watch(q_BHTK.detach(), k_BGSK.detach(), mask, scale)


def has_slots(attention: nn.Module) -> bool:
    """Whether the layer has slots at its seam, and not only watchers."""
    return any(PREFIX + site in attention._modules for site in SITES)


def attend(
    attention: nn.Module,
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: Tensor | None,
    scale: float,
    kernel: Kernel,
    *,
    cap: float | None = None,
    dropout: float = 0.0,
    keep: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Head outputs BHTK, by the kernel of the family, or by explicit scores if scores or weights are edited.

    Args:
        attention: the layer that holds the slots and watchers.
        q_BHTK: rotated queries.
        k_BGSK: rotated keys.
        v_BGSK: values.
        mask: None is causal, aligned at the last key; a boolean mask is True where visible; any other mask is added.
        scale: factor that multiplies the scores.
        kernel: attention function of the family, called with edited queries, edited keys, and values.
        cap: soft cap of the scores that is built into the family; None if there is none.
        dropout: probability that a weight is dropped; 0 outside training.
        keep: called with the weights BHTS where they are computed explicitly.
    """
    slots = attention._modules
    query, key, scores, weights = (slots.get(PREFIX + site) for site in SITES)
    q_BHTK = q_BHTK if query is None else query(q_BHTK)
    k_BGSK = k_BGSK if key is None else key(k_BGSK)
    show(attention, q_BHTK, k_BGSK, mask, scale)
    if not (isinstance(scores, Slot) and scores.active) and not (isinstance(weights, Slot) and weights.active):
        return kernel(q_BHTK, k_BGSK, v_BGSK)
    groups = q_BHTK.shape[1] // k_BGSK.shape[1]
    s_BHTS = q_BHTK @ k_BGSK.repeat_interleave(groups, dim=1).mT * scale
    if cap is not None:
        s_BHTS = cap * torch.tanh(s_BHTS / cap)
    s_BHTS = s_BHTS if scores is None else scores(s_BHTS)
    T, S = s_BHTS.shape[-2:]
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=s_BHTS.device).tril(S - T)
    s_BHTS = s_BHTS.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else s_BHTS + mask[..., :S]
    w_BHTS = s_BHTS.softmax(-1, dtype=torch.promote_types(s_BHTS.dtype, torch.float32)).to(q_BHTK.dtype)
    if mask.dtype is torch.bool:
        w_BHTS = w_BHTS.masked_fill(~mask.any(-1, keepdim=True), 0.0)  # a padding row has no visible key
    w_BHTS = w_BHTS if weights is None else weights(w_BHTS)
    w_BHTS = F.dropout(w_BHTS, dropout, training=dropout > 0)
    if keep is not None:
        keep(w_BHTS)
    return w_BHTS @ v_BGSK.repeat_interleave(groups, dim=1)
