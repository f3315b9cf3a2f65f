"""Attention entropy per head: towards 0 as attention collapses onto single keys."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.probe import AttentionProbe


def attention_entropy(scores: Tensor, visible: Tensor, weights: Tensor) -> Tensor:
    """Entropy of each row of weights in nats, BHRS to BHR; at most the log of the visible keys.

    Rows that do not sum to 1 (clipped softmax, a softmax with a sink) are normalised first; a row that sums to 0
    counts as 0. NaN in, NaN out.
    """
    w = weights.to(torch.promote_types(weights.dtype, torch.float32))
    w = w / w.sum(-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
    return -torch.special.xlogy(w, w).sum(-1)


ATTENTION_ENTROPY = AttentionProbe(
    slug="entropy",
    unit="nats",
    meaning="mean over query rows of the entropy of a head's attention; rows that see one key only are left out",
    source="arXiv 2303.06296, section 3",
    cost="standard",
    rows=attention_entropy,
    merge="mean",
)
