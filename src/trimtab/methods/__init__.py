"""The catalogue people compare: one named tuple of interventions a file.

``trimtab.methods.qk_norm`` is the method itself; a new file in this folder, named after its slug, is all it takes.
"""

from __future__ import annotations

import importlib
import pkgutil

from trimtab.method import Method
from trimtab.methods.baseline import baseline
from trimtab.methods.deep_norm import deep_norm
from trimtab.methods.gated_attention import gated_attention
from trimtab.methods.layer_scale import layer_scale
from trimtab.methods.mlra import mlra
from trimtab.methods.mlra_matched import mlra_matched
from trimtab.methods.qk_fc_norm import qk_fc_norm
from trimtab.methods.qk_norm import qk_norm
from trimtab.methods.qk_norm_cap import qk_norm_cap
from trimtab.methods.qkv_norm import qkv_norm
from trimtab.methods.reordered_norm import reordered_norm
from trimtab.methods.reordered_qk_norm import reordered_qk_norm
from trimtab.methods.scaled_embed import scaled_embed
from trimtab.methods.sigma_reparam import sigma_reparam
from trimtab.methods.sigma_reparam_normless import sigma_reparam_normless
from trimtab.methods.sigma_reparam_unit import sigma_reparam_unit
from trimtab.methods.soft_cap import soft_cap
from trimtab.methods.soft_clip import soft_clip
from trimtab.methods.soft_temp import soft_temp
from trimtab.methods.softmax1 import softmax1
from trimtab.methods.sub_ln import sub_ln
from trimtab.methods.wesar import wesar

__all__ = [
    "baseline",
    "catalogue",
    "deep_norm",
    "gated_attention",
    "layer_scale",
    "mlra",
    "mlra_matched",
    "qk_fc_norm",
    "qk_norm",
    "qk_norm_cap",
    "qkv_norm",
    "reordered_norm",
    "reordered_qk_norm",
    "scaled_embed",
    "sigma_reparam",
    "sigma_reparam_normless",
    "sigma_reparam_unit",
    "soft_cap",
    "soft_clip",
    "soft_temp",
    "softmax1",
    "sub_ln",
    "wesar",
]


def catalogue() -> dict[str, Method]:
    """Every method of this folder by slug; the baseline first, the rest in alphabetical order."""
    slugs = sorted((info.name for info in pkgutil.iter_modules(__path__)), key=lambda s: (s != "baseline", s))
    return {slug: vars(importlib.import_module(f"{__name__}.{slug}"))[slug] for slug in slugs}
