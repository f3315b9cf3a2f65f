r"""Global clipping: scale all gradients by a common factor if their global norm is too large.

.. math:: g \leftarrow g \min(1, c / \lVert g \rVert)

After clipping the global norm is at most :math:`c`. A non-finite norm makes every gradient non-finite, as intended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.gradients import Gradients
from trimtab.intervention import GradientRule, RunningRule, RunningStackedRule, Source


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalClip(GradientRule):
    """Clip the global L2 norm of the gradients.

    Attributes:
        max_norm: upper bound of the norm ("c"), in gradient units; no clipping as max_norm -> inf.

    Raises:
        ValueError: if max_norm is not positive and finite.
    """

    max_norm: float = 1.0
    source: ClassVar[Source] = Source(
        title="On the difficulty of training Recurrent Neural Networks",
        arxiv="1211.5063",
        place="algorithm 1",
        equation="g <- g min(1, c / ||g||)",
    )

    def __post_init__(self) -> None:
        if not 0 < self.max_norm < math.inf:
            raise ValueError(f"max_norm must be positive and finite, got {self.max_norm}")

    @override
    def start(self, parameters: Mapping[str, nn.Parameter]) -> RunningRule:
        return _Clip(self.max_norm)

    @override
    def start_stacked(self) -> RunningStackedRule:
        return _StackedClip(self.max_norm)


def _factor(max_norm: float, norm: Tensor) -> Tensor:
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0)  # as torch.nn.utils.clip_grad_norm_


class _Clip:
    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def __call__(self, step: int, parameters: Mapping[str, nn.Parameter]) -> Tensor | None:
        gradients = Gradients.of(parameters)
        norm = gradients.total()
        gradients.scale(_factor(self.max_norm, norm))
        return norm

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        if state:
            raise ValueError(f"global_clip keeps no state, got {sorted(state)}")


class _StackedClip:
    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    @torch.no_grad()
    def __call__(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
        if not gradients:
            return None
        norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
        totals = torch.linalg.vector_norm(norms, dim=0)
        factors = _factor(self.max_norm, totals)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *(1,) * (gradient.ndim - 1)))
        return totals
