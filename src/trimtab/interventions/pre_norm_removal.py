r"""Pre-norm removal: let QKV read the residual stream as it is.

.. math:: [Q, K, V] = x W_{QKV}

Meant for use with norms after QKV, which then bound what the missing pre-norm bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn
from typing_extensions import override

from trimtab.host import Part
from trimtab.intervention import ModuleSwap, Source


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class PreNormRemoval(ModuleSwap):
    """Take the norm before QKV out of every block; the one before FC1 stays.

    Saved weights then lack the keys of the removed norms.
    """

    source: ClassVar[Source] = Source(
        title="Methods of improving LLM training stability",
        arxiv="2410.16682",
        place="the removed pre-norm of method 8",
        equation="[Q, K, V] = x W_QKV",
    )

    @property
    @override
    def part(self) -> Part:
        return Part.ATTN_NORM

    @override
    def replacement(self, module: nn.Module) -> nn.Module:
        return nn.Identity()
