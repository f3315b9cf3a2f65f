"""The probed quantities of a run as series over its steps, read from the run folder."""

from __future__ import annotations

import statistics

from trimtab.kinds.max_lr.findings import LabelledRun, LimitFindings
from trimtab.run.folder import load_readings
from trimtab.watching import MetricKey

# Titles by metric key with * for the place: the quantities that the papers on instability follow.
FOLLOWED = {
    "qkv_output/*/l2_norm": "QKV output, L2 norm",
    "proj_output/*/l2_norm": "Proj output, L2 norm",
    "fc1_output/*/l2_norm": "FC1 output, L2 norm",
    "fc2_output/*/l2_norm": "FC2 output, L2 norm",
    "qkv_input_grad/*/l2_norm": "gradient at QKV input, L2 norm",
    "fc1_input_grad/*/l2_norm": "gradient at FC1 input, L2 norm",
    "attention/*/max_logit": "largest attention logit",
    "attention/*/entropy": "attention entropy (nats)",
    "embedding_weight/*/tev_mean": "Token Embedding Variability",
    "all_grad/*/l2_norm": "gradient of all parameters, L2 norm",
}

Series = dict[str, dict[str, list[tuple[int, float]]]]
"""Quantity -> place (``layer.0`` or ``model``) -> (step, value), in ascending order of step."""


def read_series(findings: LimitFindings, run: LabelledRun) -> Series:
    """Return the followed quantities of a run; empty without probes. The heads of a layer become a single value."""
    series: Series = {}
    for row in load_readings(findings.evidence.folder / "runs" / run.run_id):
        heads: dict[tuple[str, str], list[float]] = {}
        for text, value in row.items():
            if "/" not in text:
                continue  # this is the entry "step"
            key = MetricKey.parse(text)
            quantity = f"{key.what}/*/{key.statistic}"
            if quantity in FOLLOWED:
                heads.setdefault((quantity, key.without_head.where), []).append(float(value))
        for (quantity, place), values in heads.items():
            # Over the heads of a layer: the largest logit, and the mean of every other quantity.
            value = max(values) if quantity.endswith("max_logit") else statistics.fmean(values)
            series.setdefault(quantity, {}).setdefault(place, []).append((int(row["step"]), value))
    return series
