"""Mean of a tensor's entries; for output logits it shows a drift to which the softmax is invariant."""

from __future__ import annotations

from trimtab.probe import TensorProbe

MEAN = TensorProbe(
    slug="mean",
    unit="of the tensor",
    meaning="mean of the entries",
    source="arXiv 2309.14322, section 3.2 (mean output logit)",
    cost="cheap",
    value=lambda m: m.total / m.count,
)
