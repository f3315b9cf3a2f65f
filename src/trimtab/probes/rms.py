"""Root mean square of a tensor's entries: its size, independent of its shape."""

from __future__ import annotations

from trimtab.probe import TensorProbe

RMS = TensorProbe(
    slug="rms",
    unit="of the tensor",
    meaning="root mean square of the entries",
    cost="cheap",
    value=lambda m: (m.squares / m.count).sqrt(),
    from_norm=True,
)
