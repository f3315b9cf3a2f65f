"""A row of few keys: the numbers of all heads of a layer, or of all layers, merged into one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from trimtab.probe import Digest, Summary
from trimtab.watching.metric import MetricKey, where_of

MERGES: dict[str, Callable[[Sequence[float]], float]] = {"max": max, "min": min, "sum": sum}


def digested(values_of: Mapping[MetricKey, float], summary: Summary) -> dict[MetricKey, float]:
    """The numbers that a summary keeps, in its order; NaN is left out of a merge, unless there is nothing else."""
    kept: dict[MetricKey, list[float]] = {}
    for digest in summary.digests:
        for key, value in values_of.items():
            if (key.what, key.statistic) == (digest.what, digest.statistic):
                kept.setdefault(_key(key, digest), []).append(value)
    merge_of = {(digest.what, digest.statistic): MERGES[digest.merge] for digest in summary.digests}
    merged: dict[MetricKey, float] = {}
    for key, values in kept.items():
        sound = [value for value in values if not math.isnan(value)]
        merged[key] = merge_of[key.what, key.statistic](sound or values)
    return merged


def _key(key: MetricKey, digest: Digest) -> MetricKey:
    if digest.over == "model":
        return key._replace(where=where_of(None))
    return key.without_head if digest.over == "heads" else key
