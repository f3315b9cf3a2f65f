"""sigmaReparam in place of layer norms: every spectral norm starts at 1, and all layer norms are removed."""

from __future__ import annotations

from dataclasses import replace

from trimtab.interventions.pre_norm_removal import PreNormRemoval
from trimtab.interventions.sigma_reparam import SigmaReparam
from trimtab.method import Method

sigma_reparam_normless = Method(
    "sigma_reparam_normless",
    (PreNormRemoval(norms=("attn_norm", "mlp_norm", "final_norm")), SigmaReparam(gamma="one")),
    replace(
        SigmaReparam.source,
        place="the variant without layer norms, which its vision experiments use",
        equation="W_eff = (gamma / sigma(W)) W, gamma = 1 at first; no layer norm",
        deviations=("the rule covers QKV, Proj, FC1 and FC2; a fused QKV counts as one matrix; the head stays plain",),
    ),
)
