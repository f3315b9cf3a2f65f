"""Largest attention logit per head, which grows before attention collapses."""

from __future__ import annotations

import math

from torch import Tensor

from trimtab.probe import AttentionProbe


def max_attention_logit(scores: Tensor, visible: Tensor, weights: Tensor) -> Tensor:
    """Largest visible score of each row, BHRS to BHR; -inf where a row sees no key. NaN in, NaN out."""
    return scores.masked_fill(~visible, -math.inf).amax(-1)


MAX_ATTENTION_LOGIT = AttentionProbe(
    slug="max_logit",
    unit="1",
    meaning="largest attention score that a head gives to a key it may see, scaled and after every edit",
    source="arXiv 2309.14322, section 3.1",
    cost="standard",
    rows=max_attention_logit,
    merge="max",
)
