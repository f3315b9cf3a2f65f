"""Gradient variance over micro-batches: how noisy the gradient of a step is."""

from __future__ import annotations

from torch import Tensor

from trimtab.probe import GradientNoiseProbe


def gradient_variance(squares: Tensor, square_of_sum: Tensor, num: int) -> Tensor:
    """``(sum ||g_k||^2 - K ||mean g||^2) / (K - 1)`` from ``sum ||g_k||^2`` and ``||sum g_k||^2``; 0 if negative.

    The gradients are those that are added up: with the loss divided by K they are K times smaller.
    """
    return ((squares - square_of_sum / num) / (num - 1)).clamp(min=0)


GRADIENT_VARIANCE = GradientNoiseProbe(
    slug="variance",
    unit="gradient squared",
    meaning="(sum ||g_k||^2 - K ||mean g||^2) / (K - 1) over the K micro-batches (and ranks) of a step, where g_k is "
    "what is added up: K times smaller if the loss is divided by K",
    source="arXiv 2409.07787, whose exact definition is not stated",
    cost="full",
    value=gradient_variance,
)
