"""LR sensitivity (Wortsman et al., arXiv 2309.14322): the mean excess loss over a range of learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence


def lr_sensitivity(final_losses: Sequence[float], initial_loss: float) -> float:
    """Mean of min(final loss, initial loss) over evenly spaced log LRs, minus the best final loss, in nats.

    A non-finite final loss counts as the initial loss. The result is nan if no final loss is finite.
    """
    finite = [loss for loss in final_losses if math.isfinite(loss)]
    if not finite:
        return math.nan
    held = [min(loss, initial_loss) if math.isfinite(loss) else initial_loss for loss in final_losses]
    return sum(held) / len(held) - min(*finite, initial_loss)
