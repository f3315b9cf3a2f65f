"""The catalogue of probes, one quantity per file, and three presets by cost."""

from __future__ import annotations

from dataclasses import replace

from trimtab.probe import Cost, Preset, Probe
from trimtab.probes.attention_entropy import ATTENTION_ENTROPY
from trimtab.probes.below_eps import BELOW_EPS
from trimtab.probes.gradient_variance import GRADIENT_VARIANCE
from trimtab.probes.kurtosis import KURTOSIS
from trimtab.probes.l2_norm import L2_NORM
from trimtab.probes.log_partition import LOG_PARTITION
from trimtab.probes.max_abs import MAX_ABS
from trimtab.probes.max_attention_logit import MAX_ATTENTION_LOGIT
from trimtab.probes.mean import MEAN
from trimtab.probes.non_finite import NON_FINITE
from trimtab.probes.rms import RMS
from trimtab.probes.spectral_norm import SPECTRAL_NORM
from trimtab.probes.stable_rank import STABLE_RANK
from trimtab.probes.token_embedding_variability import TOKEN_EMBEDDING_VARIABILITY
from trimtab.probes.training_map import TRAINING_MAP
from trimtab.probes.update_ratio import UPDATE_RATIO
from trimtab.probes.update_rms import UPDATE_RMS
from trimtab.stats.spike_score import median_spikes, spike_share

__all__ = ["CATALOGUE", "PRESETS", "cheap", "full", "median_spikes", "named", "spike_share", "standard"]

CATALOGUE: tuple[Probe, ...] = (
    RMS,
    L2_NORM,
    MAX_ABS,
    MEAN,
    NON_FINITE,
    UPDATE_RATIO,
    LOG_PARTITION,
    KURTOSIS,
    UPDATE_RMS,
    BELOW_EPS,
    MAX_ATTENTION_LOGIT,
    ATTENTION_ENTROPY,
    TOKEN_EMBEDDING_VARIABILITY,
    SPECTRAL_NORM,
    STABLE_RANK,
    GRADIENT_VARIANCE,
    TRAINING_MAP,
)


def _of(*costs: Cost) -> tuple[Probe, ...]:
    return tuple(probe for probe in CATALOGUE if probe.cost in costs)


cheap = Preset(
    name="cheap", probes=_of("cheap"), every=1, rows=32, query_rows=None, gradients=False, deep_weights=False
)
standard = Preset(
    name="standard",
    probes=_of("cheap", "standard"),
    every=10,
    rows=128,
    query_rows=16,
    gradients=True,
    deep_weights=False,
)
full = Preset(
    name="full",
    probes=_of("cheap", "standard", "full"),
    every=50,
    rows=None,
    query_rows=32,
    gradients=True,
    deep_weights=True,
)

PRESETS = {preset.name: preset for preset in (cheap, standard, full)}


def named(*slugs: str, of: Preset | None = None) -> Preset:
    """A preset that reads the probes of these slugs every 10 steps; or the preset ``of`` with these probes added.

    Raises:
        ValueError: for a slug that no probe has.
    """
    known = {probe.slug: probe for probe in CATALOGUE}
    for slug in slugs:
        if slug not in known:
            raise ValueError(f"no probe is called '{slug}'; there are {', '.join(known)}")
    if of is None:
        of = Preset(name="named", probes=(), every=10, rows=None, query_rows=32, gradients=False, deep_weights=False)
    more = tuple(probe for slug, probe in known.items() if slug in slugs and probe not in of.probes)
    return replace(of, probes=(*of.probes, *more))
