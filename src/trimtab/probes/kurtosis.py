"""Kurtosis of a tensor's entries: how much of its size is concentrated in few outliers."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.probe import Moments, TensorProbe


def kurtosis(m: Moments) -> Tensor:
    """Fourth standardised moment, 3 for normal entries; NaN for constant ones."""
    mean = m.total / m.count
    second, third, fourth = (power / m.count for power in (m.squares, m.cubes, m.fourths))
    variance = second - mean**2
    variance = torch.where(
        variance > 1e-14 * second, variance, torch.nan
    )  # rounding leaves a remainder for constant entries
    return (fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / variance**2


KURTOSIS = TensorProbe(
    slug="kurtosis",
    unit="1",
    meaning="fourth standardised moment of the entries, 3 for normal ones",
    cost="standard",
    value=kurtosis,
    high=True,
)
