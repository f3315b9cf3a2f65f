"""L2 norm over all entries of a tensor, scaled up from the rows that are looked at."""

from __future__ import annotations

from trimtab.probe import TensorProbe

L2_NORM = TensorProbe(
    slug="l2_norm",
    unit="of the tensor",
    meaning="L2 norm over all entries; from a sample of rows it is their RMS times the root of all entries",
    source="arXiv 2410.16682, the norms of W, X and Y",
    cost="cheap",
    value=lambda m: (m.squares / m.count * m.entries).sqrt(),
    from_norm=True,
)
