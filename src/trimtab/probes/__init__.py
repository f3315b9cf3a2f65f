"""The catalogue of probes, one quantity per file, three presets by cost, and one with a row of few keys.

A new file in this folder, or an entry point ``trimtab.probes`` of another package, is all it takes: a probe of another
package is read where it is asked for by its slug, and is in no preset.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from trimtab.probe import Cost, Preset, Probe
from trimtab.probes.summary_row import OF_SUMMARY, ROW
from trimtab.registry import Catalogue
from trimtab.stats.spike_score import median_spikes, spike_share

__all__ = ["PRESETS", "catalogue", "cheap", "full", "median_spikes", "named", "spike_share", "standard", "summary"]

_CATALOGUE = Catalogue[Probe](__name__, lambda value: isinstance(value, Probe), lambda probe: probe.slug)


def catalogue() -> dict[str, Probe]:
    """Every probe by slug, also those of other packages, the cheapest first."""
    return {probe.slug: probe for probe in sorted(_CATALOGUE.all().values(), key=_order)}


def _order(probe: Probe) -> tuple[int, str]:
    return get_args(Cost).index(probe.cost), probe.slug


def _of(*costs: Cost) -> tuple[Probe, ...]:
    """Ours of these costs: a package that is installed must not change what a preset reads."""
    return tuple(probe for probe in sorted(_CATALOGUE.ours().values(), key=_order) if probe.cost in costs)


cheap = Preset(
    name="cheap", probes=_of("cheap"), every=1, query_rows=16, logit_rows=32, gradients=False, deep_weights=False
)
standard = Preset(
    name="standard",
    probes=_of("cheap", "standard"),
    every=10,
    query_rows=16,
    logit_rows=128,
    gradients=True,
    deep_weights=False,
)
full = Preset(
    name="full",
    probes=_of("cheap", "standard", "full"),
    every=50,
    query_rows=32,
    logit_rows=None,
    gradients=True,
    deep_weights=True,
)
summary = Preset(
    name="summary",
    probes=tuple(_CATALOGUE.ours()[slug] for slug in OF_SUMMARY),
    every=1,
    query_rows=8,
    logit_rows=32,
    gradients=False,
    deep_weights=False,
    summary=ROW,
)

PRESETS = {preset.name: preset for preset in (summary, cheap, standard, full)}


def named(*slugs: str, of: Preset | None = None) -> Preset:
    """A preset that reads the probes of these slugs every 10 steps; or the preset ``of`` with these probes added.

    A watch raises ``WatchError`` if its model has nothing that one of these probes reads.

    Raises:
        ValueError: for a slug that no probe has.
    """
    known = catalogue()
    for slug in slugs:
        if slug not in known:
            raise ValueError(f"no probe is called '{slug}'; there are {', '.join(known)}")
    if of is None:
        of = Preset(
            name="named", probes=(), every=10, query_rows=32, logit_rows=None, gradients=False, deep_weights=False
        )
    more = tuple(probe for slug, probe in known.items() if slug in slugs and probe not in of.probes)
    return replace(of, probes=(*of.probes, *more), required=of.required | set(slugs))
