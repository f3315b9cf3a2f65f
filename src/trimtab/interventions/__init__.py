"""The catalogue of interventions: one published idea a file, none knowing another.

A class is found by its slug, the snake-case form of its name; a new file in this folder, or an entry
point ``trimtab.interventions`` of another package, is all it takes.
"""

from __future__ import annotations

from inspect import isabstract

from trimtab.intervention import Intervention
from trimtab.interventions.ada_gc import AdaGC
from trimtab.interventions.attention_gate import AttentionGate
from trimtab.interventions.branch_norm import BranchNorm
from trimtab.interventions.depth_init import DepthInit
from trimtab.interventions.embedding_scale import EmbeddingScale
from trimtab.interventions.global_clip import GlobalClip
from trimtab.interventions.inner_norm import InnerNorm
from trimtab.interventions.layer_scale import LayerScale
from trimtab.interventions.logit_cap import LogitCap
from trimtab.interventions.mlra import MLRA
from trimtab.interventions.pc_layer import PCLayer
from trimtab.interventions.post_norm import PostNorm
from trimtab.interventions.pre_norm_removal import PreNormRemoval
from trimtab.interventions.qk_clip import QKClip
from trimtab.interventions.qk_norm import QKNorm
from trimtab.interventions.sigma_reparam import SigmaReparam
from trimtab.interventions.small_init import SmallInit
from trimtab.interventions.soft_cap import SoftCap
from trimtab.interventions.soft_clip import SoftClip
from trimtab.interventions.soft_temp import SoftTemp
from trimtab.interventions.softmax_one import SoftmaxOne
from trimtab.interventions.update_clip import UpdateClip
from trimtab.interventions.v_norm import VNorm
from trimtab.interventions.weight_gate import WeightGate
from trimtab.interventions.z_clip import ZClip
from trimtab.interventions.z_loss import ZLoss
from trimtab.registry import Catalogue

__all__ = [
    "MLRA",
    "AdaGC",
    "AttentionGate",
    "BranchNorm",
    "DepthInit",
    "EmbeddingScale",
    "GlobalClip",
    "InnerNorm",
    "LayerScale",
    "LogitCap",
    "PCLayer",
    "PostNorm",
    "PreNormRemoval",
    "QKClip",
    "QKNorm",
    "SigmaReparam",
    "SmallInit",
    "SoftCap",
    "SoftClip",
    "SoftTemp",
    "SoftmaxOne",
    "UpdateClip",
    "VNorm",
    "WeightGate",
    "ZClip",
    "ZLoss",
    "catalogue",
]


_CATALOGUE = Catalogue[type[Intervention]](
    __name__,
    lambda value: isinstance(value, type) and issubclass(value, Intervention) and not isabstract(value),
    lambda intervention: intervention.slug(),
)


def catalogue() -> dict[str, type[Intervention]]:
    """Every intervention by slug, also those of other packages, in alphabetical order."""
    return _CATALOGUE.all()
