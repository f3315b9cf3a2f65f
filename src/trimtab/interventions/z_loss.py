r"""z-loss: a penalty on the log-partition of the output logits.

.. math:: L = \mathrm{CE} + c\, \mathrm{mean}\, (\log Z)^2, \qquad Z = \sum_v \exp \ell_v

Cross-entropy does not change if all logits of a token are shifted; the penalty does, and keeps them from drifting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from trimtab.intervention import LogZ, LossTerm, RunningLossTerm, Source


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ZLoss(LossTerm):
    """Penalise the square of log Z, averaged over tokens. The recorded loss is that without the penalty.

    Attributes:
        coefficient: factor of the penalty ("c"), in nats; no penalty as coefficient -> 0.

    Raises:
        ValueError: if the coefficient is not positive and finite.
    """

    coefficient: float = 1e-4
    source: ClassVar[Source] = Source(
        title="PaLM: Scaling Language Modeling with Pathways",
        arxiv="2204.02311",
        place="section 5; studied in arXiv 2309.14322",
        equation="L = CE + 1e-4 mean (log Z)^2",
    )

    def __post_init__(self) -> None:
        if not 0 < self.coefficient < math.inf:
            raise ValueError(f"coefficient must be positive and finite, got {self.coefficient}")

    @override
    def start(self) -> RunningLossTerm:
        return _Penalty(self.coefficient)


class _Penalty:
    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def __call__(self, step: int, logits: Tensor, targets: Tensor, log_z: LogZ) -> Tensor:
        return self.coefficient * log_z().square().mean()

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        if state:
            raise ValueError(f"z_loss keeps no state, got {sorted(state)}")
