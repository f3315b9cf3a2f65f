r"""Pre-norm removal: QKV, FC1 or the head read the residual stream without a norm.

.. math:: [Q, K, V] = x W_{QKV}

It is meant to be combined with norms at other sites, which bound the activations in place of the pre-norm.
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
    """Remove norms that read the residual stream.

    Saved weights lack the keys of the removed norms.

    Attributes:
        norms: the norms to remove; ``attn_norm`` precedes QKV, ``mlp_norm`` FC1, ``final_norm`` the head.

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
            raise ValueError(
                f"norms must be distinct names out of {', '.join(known)}, at least one, got {list(self.norms)}"
            )

    @property
    @override
    def parts(self) -> Sequence[Part]:
        return tuple(Part(name) for name in self.norms)

    @override
    def replacement(self, views: Sequence[PartView]) -> nn.Module:
        return nn.Identity()
