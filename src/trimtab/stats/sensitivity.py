"""LR sensitivity (Wortsman et al., arXiv 2309.14322): how much loss a wrong learning rate costs on average."""

from __future__ import annotations

import math
from collections.abc import Sequence


def lr_sensitivity(final_losses: Sequence[float], initial_loss: float) -> float:
    """Mean over evenly spaced log LRs of min(final, initial) minus the best final loss, in nats.

    A non-finite final loss counts as the initial loss; nan without any finite one.
    """
    finite = [loss for loss in final_losses if math.isfinite(loss)]
    if not finite:
        return math.nan
    held = [min(loss, initial_loss) if math.isfinite(loss) else initial_loss for loss in final_losses]
    return sum(held) / len(held) - min(*finite, initial_loss)
