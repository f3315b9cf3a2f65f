r"""Attention gate: a sigmoid gate of the attention input scales the output of each head or of each channel.

.. math:: Y' = Y \odot \mathrm{sigmoid}(x W_g)

The gate lets a head output zero wherever it attends, so the first token need not become an attention sink.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import Site, Tap
from trimtab.intervention import ModelEdit, Source

WIDE = {"element": True, "head": False}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionGate(ModelEdit):
    """Multiply the head outputs, before Proj, by a sigmoid gate of the normalised attention input.

    Attributes:
        per: ``element`` gives each channel of each head a gate, with D x H x K more parameters per layer; ``head``
            gives each head one gate, with D x H more parameters.
        init_std: standard deviation of the initial gate weights; with 0 every gate starts at 1/2.

    Raises:
        ValueError: if per is unknown, or init_std is negative or not finite.
    """

    per: Literal["element", "head"] = "element"
    init_std: float = 0.02
    adds_hidden_matrices: ClassVar[bool] = True  # a projection of the residual stream
    initial_fields: ClassVar[frozenset[str]] = frozenset({"init_std"})
    source: ClassVar[Source] = Source(
        title="Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free",
        arxiv="2505.06708",
        place="gate after the attention, before its output projection",
        equation="Y' = Y * sigmoid(x W_g)",
        deviations=(
            "the gate is element-wise by default",
            "the initial gate weights have a standard deviation of 0.02",
        ),
    )
    hears: ClassVar[Sequence[Site]] = (Site.ATTN_IN,)

    def __post_init__(self) -> None:
        if self.per not in WIDE:
            raise ValueError(f"per must be one of {', '.join(WIDE)}, got {self.per!r}")
        if not 0 <= self.init_std < math.inf:
            raise ValueError(f"init_std must be finite and not negative, got {self.init_std}")

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.HEAD_OUT,)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        gates = tap.num_heads * (tap.width if WIDE[self.per] else 1)
        return _Gate(tap.heard[0].width, tap.num_heads, gates, self.init_std)


class _Gate(nn.Module):
    def __init__(self, width: int, num_heads: int, num_gates: int, init_std: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.gate = nn.Linear(width, num_gates, bias=False)
        nn.init.normal_(self.gate.weight, std=init_std)
        self._heard: Tensor | None = None

    def hear(self, x: Tensor) -> None:
        self._heard = x

    @override
    def forward(self, o_BHTK: Tensor) -> Tensor:
        # Released at once: a stored tensor would keep the autograd graph of the last step alive.
        x_BTD = cast(Tensor, self._heard)
        self._heard = None
        gate_BHTK = torch.sigmoid(self.gate(x_BTD)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return o_BHTK * gate_BHTK
