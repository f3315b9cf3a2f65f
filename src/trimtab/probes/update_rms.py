"""RMS of Adam's update before the learning rate, with this step's gradient in place of the first moment."""

from __future__ import annotations

from torch import Tensor

from trimtab.probe import AdamProbe


def _total(gradient: Tensor, second: Tensor, eps: float) -> Tensor:
    return (gradient.square() / second.clamp(min=max(eps, 1e-15) ** 2)).sum()


UPDATE_RMS = AdamProbe(
    slug="update_rms",
    unit="1",
    meaning="sqrt(mean(g^2 / max(v, eps^2))), v bias-corrected: 1 in a steady state, large when v lags behind",
    source="arXiv 2304.13013, StableAdamW",
    cost="standard",
    total=_total,
    value=lambda mean: mean.sqrt(),
)
