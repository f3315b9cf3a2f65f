r"""Pre-norm removal: let QKV, FC1 or the head read the residual stream as it is.

.. math:: [Q, K, V] = x W_{QKV}

Meant for use with norms elsewhere, which then bound what the missing pre-norm bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import nn
from typing_extensions import override

from trimtab.host import Part, PartView
from trimtab.intervention import ModuleSwap, Source


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class PreNormRemoval(ModuleSwap):
    """Take norms out that read the residual stream.

    Saved weights then lack the keys of the removed norms.

    Attributes:
        norms: which; ``attn_norm`` stands before QKV, ``mlp_norm`` before FC1, ``final_norm`` before the head.

    Raises:
        ValueError: if norms is empty or names another part.
    """

    norms: tuple[Literal["attn_norm", "mlp_norm", "final_norm"], ...] = ("attn_norm",)
    source: ClassVar[Source] = Source(
        title="Methods of improving LLM training stability",
        arxiv="2410.16682",
        place="the removed pre-norm of method 8",
        equation="[Q, K, V] = x W_QKV",
    )

    def __post_init__(self) -> None:
        known = (Part.ATTN_NORM, Part.MLP_NORM, Part.FINAL_NORM)
        if not self.norms or not set(self.norms) <= set(known) or len(set(self.norms)) < len(self.norms):
            raise ValueError(f"norms must name some of {', '.join(known)}, each once, got {list(self.norms)}")

    @property
    @override
    def parts(self) -> Sequence[Part]:
        return tuple(Part(name) for name in self.norms)

    @override
    def replacement(self, views: Sequence[PartView]) -> nn.Module:
        return nn.Identity()
