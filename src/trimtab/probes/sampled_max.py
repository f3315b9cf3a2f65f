"""Largest attention logit per head among sampled query positions: a cheap lower bound of ``max_logit``."""

from __future__ import annotations

from torch import Tensor

from trimtab.probe import AttentionProbe


def largest_of_rows(scores: Tensor, visible: Tensor, weights: Tensor) -> Tensor:
    """Largest visible score of each row, BHRS to BHR; -inf where a row sees no key. NaN in, NaN out."""
    return scores.amax(-1)


SAMPLED_MAX = AttentionProbe(
    slug="sampled_max",
    unit="1",
    meaning="largest attention score of a head at the sampled query positions: at most its max_logit",
    source="arXiv 2309.14322, section 3.1",
    cost="named",
    rows=largest_of_rows,
    merge="max",
)
