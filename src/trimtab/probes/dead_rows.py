"""Share of query positions whose attention weights are all 0, as a clipped softmax makes them."""

from __future__ import annotations

from torch import Tensor

from trimtab.probe import AttentionProbe


def dead_rows(scores: Tensor, visible: Tensor, weights: Tensor) -> Tensor:
    """1 for each row of weights whose sum is 0, and 0 for the others, BHRS to BHR."""
    return (weights.sum(-1) == 0).float()


DEAD_ROWS = AttentionProbe(
    slug="dead_rows",
    unit="share",
    meaning="share of query positions at which a head gives weight 0 to every key; those that see one key are left out",
    source="arXiv 2306.12929, the clipped softmax",
    cost="full",
    rows=dead_rows,
    merge="mean",
)
