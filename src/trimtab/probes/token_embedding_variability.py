"""Token Embedding Variability (TEV): the spread of each token's vector over its channels."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.probe import TableProbe

QUANTILES = (0.05, 0.5, 0.95)


def row_deviations(table: Tensor) -> Tensor:
    """Standard deviation of each row over its channels, (V, D) to (V,); population, not sample. NaN in, NaN out."""
    rows = table.float()
    # torch.std is slower: it goes through each row one number after the other.
    return (rows - rows.mean(-1, keepdim=True)).square_().mean(-1).sqrt_()


def summary(deviations: Tensor) -> dict[str, Tensor]:
    """Mean, standard deviation and quantiles over the vocabulary; NaN where any row is NaN."""
    statistics = {"tev_mean": deviations.mean(), "tev_std": deviations.std(correction=0)}
    ordered = deviations.sort().values
    places = torch.tensor(QUANTILES, dtype=ordered.dtype, device=ordered.device) * (len(ordered) - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=len(ordered) - 1)
    # torch.quantile refuses more than 16 million values.
    values = ordered[low] + (places - low) * (ordered[high] - ordered[low])
    return statistics | {f"tev_q{int(100 * q):02d}": value for q, value in zip(QUANTILES, values, strict=True)}


TOKEN_EMBEDDING_VARIABILITY = TableProbe(
    slug="tev",
    unit="of the weight",
    meaning="mean, standard deviation and quantiles over the vocabulary of the deviation within each token's vector",
    source="arXiv 2409.07787",
    cost="standard",
    rows=row_deviations,
    values=summary,
)
