"""The signals of each run over time, as arrays: read from run folders, and stored in a single file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.run.folder import TOKENS, load_arrays, load_readings, load_steps, load_times
from trimtab.run.kept import Arrays, Kept, has_rows, read_arrays, write_arrays
from trimtab.watching import MetricKey

Floats = NDArray[np.float64]
GROUPS = ("frequent", "rare", "unseen")
BIN_EDGES = 2.0 ** np.arange(
    -10, 4.25, 0.25
)  # of the histogram of TEV; values outside are counted in the first or last bin
VARIANCE = "all_grad/model/variance"


@dataclass(frozen=True, slots=True)
class Trace:
    """The signals of a run over time.

    Attributes:
        steps: steps of the readings, (R,).
        signals: values by name, (R,); nan without a value.
        histogram: share of the tokens of each group by TEV, (R, 3, bins); no rows if tokens were not kept.
        times: seconds of a step without a reading, and of each kind of reading.
    """

    steps: NDArray[np.int64]
    signals: Mapping[str, Floats]
    histogram: Floats
    times: Mapping[str, float]

    def at(self, name: str, step: float) -> float:
        """Return a signal at the last reading up to a step; nan before the first reading."""
        index = int(np.searchsorted(self.steps, step, side="right")) - 1
        return float(self.signals[name][index]) if index >= 0 and name in self.signals else math.nan


NO_TRACE = Trace(np.zeros(0, dtype=np.int64), {}, np.zeros((0, 0, 0)), {})


def find_trace(kept: Kept, run_id: str, frequent_share: float) -> Trace:
    """Return the trace of a finished run, from its folder or from those that were kept; empty if nothing was kept."""
    run = kept.folder / "runs" / run_id
    if has_rows(run):
        return read_trace(run, frequent_share)
    arrays = kept.of(run_id)
    return NO_TRACE if arrays is None else _of_arrays(arrays)


def read_trace(run: Path, frequent_share: float) -> Trace:
    """Return the trace of a run folder with rows; it is empty if the run ended before the first reading."""
    rows, readings = load_steps(run), load_readings(run)
    steps = np.array([int(row["step"]) for row in readings], dtype=np.int64)
    signals = _of_steps(rows, steps)
    for row in readings:
        for key in row:
            if key.endswith(("/variance", "/tev_mean", "/tev_std")) and "head" not in key and key not in signals:
                signals[key] = np.array([float(reading.get(key, math.nan)) for reading in readings])
    named = {_plain(key): values for key, values in signals.items() if _plain(key)}
    tokens = load_arrays(run, TOKENS)
    histogram = np.zeros((0, len(GROUPS), len(BIN_EDGES) - 1))
    if tokens:
        groups = token_groups(tokens["count"], frequent_share)
        of_tokens, histogram = _of_tokens(tokens, groups, steps)
        named |= of_tokens
    return Trace(steps, named, histogram, load_times(run))


def token_groups(count: NDArray[np.integer], frequent_share: float) -> NDArray[np.int64]:
    """Return, for each token, 0 if it is frequent, 1 if rare, 2 if it does not occur in the training text, (V,).

    The frequent tokens are the fewest tokens that make up this share of the text.
    """
    order = np.argsort(-count, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(count[order])[:-1]]) / max(1, count.sum())
    groups = np.full(len(count), GROUPS.index("rare"))
    groups[order[before < frequent_share]] = GROUPS.index("frequent")
    groups[count == 0] = GROUPS.index("unseen")
    return groups


def _of_steps(rows: Any, steps: NDArray[np.int64]) -> dict[str, Floats]:
    """Return mean training loss and median gradient norm since the previous reading."""
    number = np.array([int(row["step"]) for row in rows])
    loss, norm = (np.array([float(row[key]) for row in rows]) for key in ("loss", "grad_norm"))
    series: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    previous = 0
    for step in steps:
        since = (number > previous) & (number <= step)
        series["loss"].append(float(loss[since].mean()))
        series["grad_norm"].append(float(np.median(norm[since])))
        previous = int(step)
    return {key: np.array(values) for key, values in series.items()}


def _plain(key: str) -> str:
    """Return the name of a signal, such as 'variance', 'variance_layer_3' or 'tev_mean'; '' for any other metric."""
    if "/" not in key:
        return key
    what, where, statistic = MetricKey.parse(key)
    if statistic != "variance":
        return statistic if what.startswith("embedding") else ""
    if not what.endswith("_grad"):
        return ""
    if what.startswith("embedding"):
        return "variance_embedding"
    return "variance" if where == "model" else f"variance_{where.replace('.', '_')}"


def _of_tokens(
    tokens: Mapping[str, NDArray[Any]], groups: NDArray[np.int64], steps: NDArray[np.int64]
) -> tuple[dict[str, Floats], Floats]:
    place = {int(step): row for row, step in enumerate(tokens["steps"])}
    deviation: Floats = tokens["deviation"].astype(float)
    mean = np.asarray(deviation.mean(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        of_norm = np.where(tokens["rms"] == 0, 0.0, deviation / tokens["rms"]).mean(
            1
        )  # a row of zeros has no deviation
    series = {"tev_over_norm": of_norm, "tev_over_init": mean / mean[place[0]]}
    for index, group in enumerate(GROUPS):
        of_group = deviation[:, groups == index]
        series[f"tev_{group}"] = (
            np.asarray(of_group.mean(1)) if of_group.shape[1] else np.full(len(deviation), math.nan)
        )
    rows = [place[int(step)] for step in steps]
    histogram = np.zeros((len(rows), len(GROUPS), len(BIN_EDGES) - 1))
    for index in range(len(GROUPS)):
        of_group = np.clip(deviation[:, groups == index], BIN_EDGES[0], np.nextafter(BIN_EDGES[-1], 0))
        for at, row in enumerate(rows):
            if of_group.shape[1] and np.isfinite(of_group[row]).all():
                histogram[at, index] = np.histogram(of_group[row], BIN_EDGES)[0] / of_group.shape[1]
    return {name: values[rows] for name, values in series.items()}, histogram


def save_traces(traces: Mapping[str, Trace], file: Path) -> None:
    """Store traces by run id in a compressed file; signals in double precision, as those of broken runs are huge."""
    write_arrays(file, {run_id: _arrays(trace) for run_id, trace in traces.items()})


def load_traces(file: Path) -> dict[str, Trace]:
    """Return the traces of a file by run id."""
    return {run_id: _of_arrays(arrays) for run_id, arrays in read_arrays(file).items()}


def _arrays(trace: Trace) -> dict[str, NDArray[Any]]:
    return {
        "steps": trace.steps,
        "histogram": trace.histogram.astype(np.float16),
        **{f"signal/{name}": values for name, values in trace.signals.items()},
        **{f"time/{name}": np.array([value], np.float32) for name, value in trace.times.items()},
    }


def _of_arrays(arrays: Arrays) -> Trace:
    return Trace(
        arrays["steps"],
        {name[7:]: values.astype(float) for name, values in arrays.items() if name.startswith("signal/")},
        arrays["histogram"].astype(float),
        {name[5:]: float(values[0]) for name, values in arrays.items() if name.startswith("time/")},
    )
