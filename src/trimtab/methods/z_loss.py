"""A penalty on the log-partition of the output logits."""

from __future__ import annotations

from trimtab.interventions.z_loss import ZLoss
from trimtab.method import Method

z_loss = Method("z_loss", (ZLoss(),), ZLoss.source)
