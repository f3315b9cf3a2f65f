"""The probed quantities of a run as series over its steps: read from run folders, or from one file that keeps them."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.run.folder import load_readings, load_steps
from trimtab.run.kept import Arrays, Kept, has_rows, write_arrays
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
FILE = "movers.npz"
KEPT = np.uint32(0xFFFF0000)  # the sign, the exponent and 7 bits of the fraction of a single-precision number
HALF = np.uint32(0x00008000)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """The followed quantities of a run, and its training loss.

    Attributes:
        steps: steps of the readings, (R,), ascending.
        values: by quantity and place (``layer.0`` or ``model``), (R,); nan without a value.
        losses: training loss of every step, in nats.
    """

    steps: NDArray[np.int64]
    values: Mapping[str, Mapping[str, Floats]]
    losses: Floats


def read_series(folder: Path, run_ids: Collection[str]) -> dict[str, Series]:
    """Return the series of runs of a study folder by run id, without runs that have no readings of these quantities.

    Values are rounded to 0.4 %, from run folders as in the file, so both give the same numbers.
    """
    kept = Kept(folder, FILE)
    found: dict[str, Series] = {}
    for run_id in run_ids:
        run = folder / "runs" / run_id
        arrays = None if has_rows(run) else kept.of(run_id)
        series = _of_run(run) if has_rows(run) else _of_arrays(arrays) if arrays is not None else None
        if series is not None and series.values:
            found[run_id] = series
    return found


def save_series(series: Mapping[str, Series], file: Path) -> None:
    """Save the series of runs, by run id, in one compressed file."""
    write_arrays(file, {run_id: _arrays(of_run) for run_id, of_run in series.items()})


def _arrays(series: Series) -> dict[str, NDArray[Any]]:
    rows = [(q, place, values) for q, places in series.values.items() for place, values in places.items()]
    return {
        "steps": series.steps.astype(np.int32),
        "names": np.array([[q, place] for q, place, _ in rows], dtype=np.str_).reshape(-1, 2),
        "values": np.array([values for *_, values in rows], dtype=np.float32),
        "losses": series.losses.astype(np.float32),
    }


def _of_arrays(arrays: Arrays) -> Series:
    values: dict[str, dict[str, Floats]] = {}
    for (quantity, place), row in zip(arrays["names"], arrays["values"], strict=True):
        values.setdefault(str(quantity), {})[str(place)] = row.astype(np.float64)
    return Series(arrays["steps"].astype(np.int64), values, arrays["losses"].astype(np.float64))


def _of_run(run: Path) -> Series:
    readings = load_readings(run)
    values: dict[str, dict[str, list[float]]] = {}
    for index, row in enumerate(readings):
        for (quantity, place), value in _of_reading(row).items():
            column = values.setdefault(quantity, {}).setdefault(place, [float("nan")] * len(readings))
            column[index] = value
    losses = [float(row["loss"]) for row in load_steps(run) if row["step"] > 0]
    return Series(
        steps=np.array([int(row["step"]) for row in readings], dtype=np.int64),
        values={q: {place: rounded(column) for place, column in places.items()} for q, places in values.items()},
        losses=np.array(losses, dtype=np.float32).astype(np.float64),
    )


def _of_reading(row: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """The followed values of one reading. The heads of a layer become a single value."""
    heads: dict[tuple[str, str], list[float]] = {}
    for text, value in row.items():
        if "/" not in text:
            continue  # this is the entry "step"
        key = MetricKey.parse(text)
        quantity = f"{key.what}/*/{key.statistic}"
        if quantity in FOLLOWED:
            heads.setdefault((quantity, key.without_head.where), []).append(float(value))
    # Over the heads of a layer: the largest logit, and the mean of every other quantity.
    return {
        key: max(values) if key[0].endswith("max_logit") else statistics.fmean(values) for key, values in heads.items()
    }


def rounded(values: list[float]) -> Floats:
    """Return values with a relative error of at most 0.4 %; they compress to half the size."""
    with np.errstate(over="ignore"):  # a value beyond single precision becomes infinite
        single = np.array(values, dtype=np.float64).astype(np.float32)
    nearest = ((single.view(np.uint32) + HALF) & KEPT).view(np.float32)
    return np.where(np.isfinite(single), nearest, single).astype(np.float64)
