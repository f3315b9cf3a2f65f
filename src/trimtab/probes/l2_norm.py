"""L2 norm over all finite entries of a tensor."""

from __future__ import annotations

from trimtab.probe import TensorProbe

L2_NORM = TensorProbe(
    slug="l2_norm",
    unit="of the tensor",
    meaning="L2 norm over all entries",
    source="arXiv 2410.16682, the norms of W, X and Y",
    cost="cheap",
    value=lambda m: m.squares.sqrt(),
    from_norm=True,
)
