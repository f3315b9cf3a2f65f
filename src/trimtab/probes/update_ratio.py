"""Size of one optimizer update over the size of the weight it changes."""

from __future__ import annotations

from trimtab.probe import UpdateProbe

UPDATE_RATIO = UpdateProbe(
    slug="update_ratio",
    unit="1",
    meaning="L2 norm of the step's update, weight decay included, over that of the weight after it",
    cost="cheap",
    value=lambda update, weight: (update / weight).sqrt(),
)
