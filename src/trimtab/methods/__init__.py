"""The catalogue people compare: one named tuple of interventions a file.

``trimtab.methods.qk_norm`` is the method itself; a new file in this folder, named after its slug, is all it takes.
"""

from __future__ import annotations

import importlib
import pkgutil

from trimtab.method import Method
from trimtab.methods.baseline import baseline
from trimtab.methods.layer_scale import layer_scale
from trimtab.methods.qk_fc_norm import qk_fc_norm
from trimtab.methods.qk_norm import qk_norm
from trimtab.methods.qk_norm_cap import qk_norm_cap
from trimtab.methods.qkv_norm import qkv_norm
from trimtab.methods.sigma_reparam import sigma_reparam
from trimtab.methods.soft_cap import soft_cap
from trimtab.methods.soft_clip import soft_clip
from trimtab.methods.soft_temp import soft_temp

__all__ = [
    "baseline",
    "catalogue",
    "layer_scale",
    "qk_fc_norm",
    "qk_norm",
    "qk_norm_cap",
    "qkv_norm",
    "sigma_reparam",
    "soft_cap",
    "soft_clip",
    "soft_temp",
]


def catalogue() -> dict[str, Method]:
    """Every method of this folder by slug; the baseline first, the rest in alphabetical order."""
    slugs = sorted((info.name for info in pkgutil.iter_modules(__path__)), key=lambda s: (s != "baseline", s))
    return {slug: vars(importlib.import_module(f"{__name__}.{slug}"))[slug] for slug in slugs}
