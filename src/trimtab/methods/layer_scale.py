"""Method 5: a learnable gain per channel on each branch."""

from __future__ import annotations

from trimtab.interventions.layer_scale import LayerScale
from trimtab.method import Method

layer_scale = Method(
    "layer_scale",
    (LayerScale(),),
    LayerScale.source,
)
