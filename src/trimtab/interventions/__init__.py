"""The catalogue of interventions: one published idea a file, none knowing another.

A class is found by its slug, the snake-case form of its name; a new file in this folder is all it takes.
"""

from __future__ import annotations

import importlib
import pkgutil

from trimtab.intervention import Intervention
from trimtab.interventions.branch_norm import BranchNorm
from trimtab.interventions.global_clip import GlobalClip
from trimtab.interventions.layer_scale import LayerScale
from trimtab.interventions.pre_norm_removal import PreNormRemoval
from trimtab.interventions.qk_norm import QKNorm
from trimtab.interventions.sigma_reparam import SigmaReparam
from trimtab.interventions.soft_cap import SoftCap
from trimtab.interventions.soft_clip import SoftClip
from trimtab.interventions.soft_temp import SoftTemp
from trimtab.interventions.v_norm import VNorm

__all__ = [
    "BranchNorm",
    "GlobalClip",
    "LayerScale",
    "PreNormRemoval",
    "QKNorm",
    "SigmaReparam",
    "SoftCap",
    "SoftClip",
    "SoftTemp",
    "VNorm",
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
