"""Method 2: softmax with a temperature."""

from __future__ import annotations

from trimtab.interventions.soft_temp import SoftTemp
from trimtab.method import Method

soft_temp = Method(
    "soft_temp",
    (SoftTemp(),),
    SoftTemp.source,
)
