"""Gradient variance relative to the gradient of the step: the same however the loss of a micro-batch is scaled."""

from __future__ import annotations

from torch import Tensor

from trimtab.probe import GradientNoiseProbe
from trimtab.probes.gradient_variance import gradient_variance


def relative_gradient_variance(squares: Tensor, square_of_sum: Tensor, num: int) -> Tensor:
    """``gradient_variance`` over ``||mean g||^2``; for a mean of 0 it is infinite, or NaN if there is no variance."""
    return gradient_variance(squares, square_of_sum, num) / (square_of_sum / num**2)


RELATIVE_GRADIENT_VARIANCE = GradientNoiseProbe(
    slug="relative_variance",
    unit="1",
    meaning="`variance` over ||mean g||^2: the same whether or not the loss is divided by the number of micro-batches",
    cost="full",
    value=relative_gradient_variance,
)
