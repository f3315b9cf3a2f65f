"""Largest attention logit per head, which grows before attention collapses."""

from __future__ import annotations

from torch import Tensor

from trimtab.probe import ScoreProbe


def max_attention_logit(scores: Tensor) -> Tensor:
    """Largest score of each row, BHRS to BHR; -inf where a row sees no key."""
    return scores.amax(-1)


MAX_ATTENTION_LOGIT = ScoreProbe(
    slug="max_logit",
    unit="1",
    meaning="largest attention score that a head gives to a key it may see, at every query position; scaled and after "
    "every edit",
    source="arXiv 2309.14322, section 3.1",
    cost="standard",
    rows=max_attention_logit,
)
