r"""AdaGC: clip each gradient at a multiple of an exponential moving average of its own clipped norm.

.. math:: g_i \leftarrow g_i \min(1, \lambda \gamma_i / \lVert g_i \rVert), \qquad
          \gamma_i \leftarrow \beta \gamma_i + (1 - \beta) \lVert g_i \rVert

A spike of one tensor is removed without scaling down the others, and its size does not enter the reference: the average
grows by at most :math:`(1 - \beta)(\lambda - 1)` per step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.gradients import Gradients, statistics_dtype
from trimtab.intervention import GradientRule, RunningRule, Source

SCOPES = ("tensor", "shard", "global")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AdaGC(GradientRule):
    """Clip each gradient by its own history. It replaces global clipping: leave ``global_clip`` out.

    The rule clips globally during its warm-up, and only by the averages afterwards. A gradient with an entry that is
    not finite becomes zero, and enters neither the averages nor the global norm.

    Attributes:
        ratio: a norm above this multiple of the average is clipped ("lambda_rel"); no clipping as ratio -> inf.
        beta: decay of the average; its memory is 1 / (1 - beta) steps.
        warmup_steps: steps of global clipping, whose smallest norms start the averages ("T_start").
        max_norm: bound of the global norm during the warm-up ("lambda_abs").
        scope: what has an average: each ``tensor``; each ``shard`` of a tensor that is distributed over processes,
            so that the shards of one tensor may be scaled differently; or all gradients together, ``global``.
        norm_floor: a smaller norm is no evidence, and starts and moves no average. With 0 a single gradient of zero in
            the warm-up makes the average 0, and the tensor is never updated again.
        warmup_floor: lower bound of the first average, as a share of the mean norm of the warm-up. With 0 one small
            norm keeps a tensor clipped for thousands of steps, since averages grow by 0.04 % a step; matrices behind an
            output projection that starts at zero have such a norm.
        eps: added to the norm that a clipped gradient is divided by.

    Raises:
        ValueError: if a setting is out of its range.
    """

    ratio: float = 1.04
    beta: float = 0.99
    warmup_steps: int = 100
    max_norm: float = 1.0
    scope: Literal["tensor", "shard", "global"] = "tensor"
    norm_floor: float = 1e-8
    warmup_floor: float = 0.5
    eps: float = 1e-6
    replaces: ClassVar[frozenset[str]] = frozenset({"global_clip", "z_clip"})
    source: ClassVar[Source] = Source(
        title="AdaGC: Enhancing LLM Pretraining Stability via Adaptive Gradient Clipping",
        arxiv="2502.11034",
        place="algorithm 1, and the authors' code",
        equation="g_i <- g_i min(1, 1.04 m_i / ||g_i||), m_i <- 0.99 m_i + 0.01 ||g_i||",
        deviations=(
            "norms below norm_floor are left out, so that a gradient of zero does not freeze its tensor",
            "an average starts at no less than half the mean norm of the warm-up, not at the smallest norm",
            "a gradient that is not finite becomes zero and enters no statistic; the authors stop the run",
            "the averages are saved with the training; the authors' warm-up starts again after a restart",
        ),
    )

    def __post_init__(self) -> None:
        if not 1 <= self.ratio < math.inf:
            raise ValueError(f"ratio must be at least 1 and finite, got {self.ratio}")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must be at least 0 and below 1, got {self.beta}")
        if not 1 <= self.warmup_steps <= 10**8:
            raise ValueError(f"warmup_steps must lie between 1 and 100,000,000, got {self.warmup_steps}")
        if not 0 < self.max_norm < math.inf:
            raise ValueError(f"max_norm must be positive and finite, got {self.max_norm}")
        if self.scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}, got {self.scope!r}")
        if not 0 <= self.norm_floor < math.inf:
            raise ValueError(f"norm_floor must be at least 0 and finite, got {self.norm_floor}")
        if not 0 <= self.warmup_floor <= 1:
            raise ValueError(f"warmup_floor must lie between 0 and 1, got {self.warmup_floor}")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be at least 0 and finite, got {self.eps}")

    @classmethod
    def as_published(cls) -> Self:
        """The authors' algorithm, with its edges: no floors."""
        return cls(norm_floor=0.0, warmup_floor=0.0)

    @override
    def start(self, parameters: Mapping[str, nn.Parameter]) -> RunningRule:
        return _Averages(self, list(parameters), next(iter(parameters.values()), torch.zeros(())))


class _Averages:
    """One average per gradient; a single one, named "all", with the global scope.

    Attributes:
        calls: steps so far.
        average: (P,), NaN before the first norm. During the warm-up it is the smallest norm.
        mean: mean norm of the warm-up (P,).
        count: norms in that mean (P,).
    """

    def __init__(self, config: AdaGC, names: list[str], like: Tensor) -> None:
        self.config = config
        self.names = ["all"] if config.scope == "global" else names
        self.index = {name: index for index, name in enumerate(self.names)}
        self.calls = 0
        dtype = statistics_dtype(like.device)
        self.average = torch.full((len(self.names),), torch.nan, device=like.device, dtype=dtype)
        self.mean = torch.zeros_like(self.average)
        self.count = torch.zeros_like(self.average)

    @torch.no_grad()
    def __call__(self, step: int, parameters: Mapping[str, nn.Parameter]) -> Tensor | None:
        gradients = Gradients.of(parameters)
        total = gradients.total()
        present = gradients.present
        if not present:
            return total
        norms = gradients.norms()
        sound = norms.isfinite()
        sound_total = gradients.total_of(sound)
        rows = self._rows(present)
        self.calls += 1
        if self.calls <= self.config.warmup_steps:
            clipped = torch.clamp(self.config.max_norm / (sound_total + 1e-6), max=1.0)
            gradients.scale(clipped, ~sound)
            self._warm_up(rows, *self._measured(gradients, sound))
        else:
            factors = self._clip(rows, *self._measured(gradients, sound))
            gradients.scale(factors[0] if self.config.scope == "global" else factors, ~sound)
        return total

    def _measured(self, gradients: Gradients, sound: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of each row, and whether it is finite and no less than the floor."""
        if self.config.scope == "global":
            norms, known = gradients.total_of(sound)[None], sound.any()[None]
        else:
            norms, known = gradients.shard_norms() if self.config.scope == "shard" else gradients.norms(), sound
        return norms.to(self.average), known & (norms >= self.config.norm_floor)

    def _warm_up(self, rows: slice | Tensor, norms: Tensor, known: Tensor) -> None:
        average, mean, count = self.average[rows], self.mean[rows], self.count[rows]
        self.average[rows] = torch.where(known, torch.fmin(average, norms), average)  # fmin passes over NaN
        self.count[rows] = count + known
        self.mean[rows] = torch.where(known, mean + (norms - mean) / (count + 1), mean)
        if self.calls == self.config.warmup_steps:
            self.average = torch.maximum(self.average, self.config.warmup_floor * self.mean)

    def _clip(self, rows: slice | Tensor, norms: Tensor, known: Tensor) -> Tensor:
        config = self.config
        average = self.average[rows]
        reference = torch.where(average.isnan(), norms, average)
        limit = config.ratio * reference
        over = known & (norms > limit)
        kept = torch.where(over, limit, norms)
        self.average[rows] = torch.where(known, config.beta * reference + (1 - config.beta) * kept, average)
        return torch.where(over, limit / (norms + config.eps), 1.0)

    def _rows(self, present: list[str]) -> slice | Tensor:
        """The rows of the gradients that are present."""
        if self.config.scope == "global" or len(present) == len(self.names):
            return slice(None)
        return torch.tensor([self.index[name] for name in present], device=self.average.device)

    def state_dict(self) -> dict[str, object]:
        columns = {"average": self.average, "mean": self.mean, "count": self.count}
        return {
            "calls": self.calls,
            **{key: dict(zip(self.names, x.clone().unbind(), strict=True)) for key, x in columns.items()},
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        columns = {key: cast("dict[str, Tensor]", state.get(key, {})) for key in ("average", "mean", "count")}
        for column in columns.values():
            if set(column) != set(self.names):
                odd = sorted(set(column) ^ set(self.names))[0]
                raise ValueError(f"ada_gc: the state has other parameters; '{odd}' is in only one of both")
        self.calls = int(cast(Any, state["calls"]))
        for key, column in columns.items():
            values = torch.stack([column[name].to(self.average) for name in self.names])
            setattr(self, key, values)
