"""The arrays of each run for the view of seeds: read from run folders, or saved in one file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.run.folder import OUTCOME, PREDICTIONS, load_arrays, load_readings, load_steps
from trimtab.run.kept import Arrays, Kept, has_rows, read_arrays, write_arrays
from trimtab.stats.spike_score import median_spikes, spike_share

FACTS = "seeds.npz"
SPIKES = ("loss, 7 sd", "gradient norm, 7 sd", "loss, above median")


@dataclass(frozen=True, slots=True)
class SeedFacts:
    """The arrays of one run.

    Attributes:
        predictions: most likely next tokens on the held-out windows, (N,); empty if the run has none.
        steps: steps at which the weights were read, (R,).
        names: names of the statistics of all weights; empty if the weights were not read.
        statistics: values of the statistics, (R, F).
        spikes: spike scores in the order of ``SPIKES``; nan if the run has no rows of steps.
    """

    predictions: NDArray[np.integer]
    steps: NDArray[np.int64]
    names: tuple[str, ...]
    statistics: NDArray[np.float64]
    spikes: tuple[float, ...]


NO_FACTS = SeedFacts(np.zeros(0, np.uint32), np.zeros(0, np.int64), (), np.zeros((0, 0)), (np.nan,) * len(SPIKES))


def find_facts(kept: Kept, run_id: str) -> SeedFacts:
    """The facts of a finished run, from its folder or from those that were kept; ``NO_FACTS`` if there are none."""
    run = kept.folder / "runs" / run_id
    if has_rows(run):
        return read_facts(run)
    arrays = kept.of(run_id)
    return NO_FACTS if arrays is None else _of_arrays(arrays)


def read_facts(run: Path) -> SeedFacts:
    """The facts of a run folder with rows; ``NO_FACTS`` if the run is not finished."""
    if not (run / OUTCOME).is_file():
        return NO_FACTS
    rows = [row for row in load_steps(run) if row["step"] > 0]
    losses, norms = [float(row["loss"]) for row in rows], [float(row["grad_norm"]) for row in rows]
    stored = load_arrays(run, PREDICTIONS)
    predictions = stored["predictions"].ravel() if stored else NO_FACTS.predictions
    readings = load_readings(run)
    names = tuple(key for key in (readings[0] if readings else {}) if key.startswith(("all_weights/", "all_biases/")))
    table = np.array([[float(row.get(name, np.nan)) for name in names] for row in readings])
    return SeedFacts(
        predictions=predictions,
        steps=np.array([int(row["step"]) for row in readings], dtype=np.int64),
        names=names,
        statistics=table.reshape(len(readings), len(names)),
        spikes=(spike_share(losses, 7), _spikes_of_norms(norms), median_spikes(losses)),
    )


def save_facts(facts: Mapping[str, SeedFacts], file: Path) -> None:
    """Save facts by run id in one compressed file, with the statistics in single precision."""
    write_arrays(file, {run_id: _arrays(run) for run_id, run in facts.items()})


def load_facts(file: Path) -> dict[str, SeedFacts]:
    """The facts of a file by run id."""
    return {run_id: _of_arrays(arrays) for run_id, arrays in read_arrays(file).items()}


def _arrays(facts: SeedFacts) -> dict[str, NDArray[Any]]:
    largest = int(facts.predictions.max(initial=0))
    return {
        "predictions": facts.predictions.astype(np.min_scalar_type(largest)),
        "steps": facts.steps,
        "names": np.array(facts.names, dtype=np.str_),
        "statistics": facts.statistics.astype(np.float32),
        "spikes": np.array(facts.spikes),
    }


def _of_arrays(arrays: Arrays) -> SeedFacts:
    return SeedFacts(
        arrays["predictions"],
        arrays["steps"],
        tuple(str(name) for name in arrays["names"]),
        arrays["statistics"].astype(float),
        tuple(float(score) for score in arrays["spikes"]),
    )


def _spikes_of_norms(norms: Sequence[float]) -> float:
    """The share of spikes; nan if no rule of the run measures the gradient norm."""
    return spike_share(norms, 7) if any(math.isfinite(norm) for norm in norms) else math.nan
