r"""Softmax-1: an additional 1 in the denominator, so that a head can attend to no key.

.. math:: A_{ij} = \frac{e^{S_{ij}}}{1 + \sum_l e^{S_{il}}}

It equals a softmax with an additional key of score 0 and value 0. It is computed from the plain softmax :math:`P` as
:math:`P\,\mathrm{sigmoid}(\log Z)` with :math:`\log Z = S_{ij} - \log P_{ij}` at the most likely key, which does not
overflow for any score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import Site, Tap
from trimtab.intervention import ModelEdit, Source


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SoftmaxOne(ModelEdit):
    """Add 1 to the denominator of every attention softmax."""

    source: ClassVar[Source] = Source(
        title="Attention Is Off By One (E. Miller, 2023)",
        arxiv="",
        place="softmax_1, a note on the web",
        equation="A_ij = exp(S_ij) / (1 + sum_l exp(S_il))",
        deviations=("a mask may hide keys, but must not add to the scores of visible keys",),
    )
    hears: ClassVar[Sequence[Site]] = (Site.SCORES,)

    @property
    @override
    def sites(self) -> Sequence[Site]:
        return (Site.WEIGHTS,)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return _OffByOne()


class _OffByOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._heard: Tensor | None = None

    def hear(self, x: Tensor) -> None:
        self._heard = x

    @override
    def forward(self, w_BHTT: Tensor) -> Tensor:
        s_BHTT = cast(Tensor, self._heard)
        self._heard = None
        dtype = torch.promote_types(w_BHTT.dtype, torch.float32)
        largest, key = w_BHTT.to(dtype).max(-1, keepdim=True)
        # A row without visible keys has only zero weights and stays zero; the clamp avoids log 0.
        log_z = s_BHTT.to(dtype).gather(-1, key) - largest.clamp_min(torch.finfo(dtype).tiny).log()
        return w_BHTT * torch.sigmoid(log_z).to(w_BHTT.dtype)
