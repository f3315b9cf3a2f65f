"""The catalogue of interventions: one published idea a file, none knowing another.

A class is found by its slug, the snake-case form of its name; a new file in this folder is all it takes.
"""

from __future__ import annotations

import importlib
import pkgutil

from trimtab.intervention import Intervention
from trimtab.interventions.attention_gate import AttentionGate
from trimtab.interventions.branch_norm import BranchNorm
from trimtab.interventions.depth_init import DepthInit
from trimtab.interventions.embedding_scale import EmbeddingScale
from trimtab.interventions.global_clip import GlobalClip
from trimtab.interventions.inner_norm import InnerNorm
from trimtab.interventions.layer_scale import LayerScale
from trimtab.interventions.mlra import MLRA
from trimtab.interventions.post_norm import PostNorm
from trimtab.interventions.pre_norm_removal import PreNormRemoval
from trimtab.interventions.qk_norm import QKNorm
from trimtab.interventions.sigma_reparam import SigmaReparam
from trimtab.interventions.small_init import SmallInit
from trimtab.interventions.soft_cap import SoftCap
from trimtab.interventions.soft_clip import SoftClip
from trimtab.interventions.soft_temp import SoftTemp
from trimtab.interventions.softmax_one import SoftmaxOne
from trimtab.interventions.v_norm import VNorm
from trimtab.interventions.weight_gate import WeightGate

__all__ = [
    "MLRA",
    "AttentionGate",
    "BranchNorm",
    "DepthInit",
    "EmbeddingScale",
    "GlobalClip",
    "InnerNorm",
    "LayerScale",
    "PostNorm",
    "PreNormRemoval",
    "QKNorm",
    "SigmaReparam",
    "SmallInit",
    "SoftCap",
    "SoftClip",
    "SoftTemp",
    "SoftmaxOne",
    "VNorm",
    "WeightGate",
    "catalogue",
]


def catalogue() -> dict[str, type[Intervention]]:
    """Every intervention of this folder by slug, in alphabetical order."""
    found: dict[str, type[Intervention]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Intervention) and value.__module__ == module.__name__:
                found[value.slug()] = value
    return dict(sorted(found.items()))
