"""Statistics of one checkpoint: TEV of token tables, size and spectrum of every matrix, outlier layers."""

from __future__ import annotations

import math
import os
import re
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimtab.config import ConfigError
from trimtab.inspection.checkpoints import Checkpoint
from trimtab.inspection.spectrum import spectral_norm
from trimtab.inspection.variability import variability
from trimtab.run.folder import IntegrityError, load_steps
from trimtab.stats.spike_score import median_spikes, spike_share

EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|token_embedding|token_embd|embed_in|word_embeddings|tok_embeddings)\.weight$"
)
HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|head|output)\.weight$")
NUMBER = re.compile(r"(?<=\.)\d{1,9}(?=\.)")
OUTLIER = 5.0  # robust standard deviations of the logarithm; an outlier also differs from the median by 25 % or more
LEAST_LAYERS = 5


@dataclass(frozen=True, slots=True)
class Table:
    """A table of token vectors, with its TEV statistics by name and the L2 norms of its rows."""

    name: str
    tokens: int
    tev: dict[str, float]
    row_norms: tuple[float, float, float]  # minimum, mean, maximum


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight matrix. Its spectral norm comes from Lanczos iteration, which gives a lower bound."""

    name: str
    group: str
    layer: int | None
    shape: tuple[int, int]
    rms: float
    spectral_norm: float
    stable_rank: float
    non_finite: int


@dataclass(frozen=True, slots=True)
class Outlier:
    """A matrix that differs from the same matrix of the other layers; ``ratio`` is its value over their median."""

    name: str
    statistic: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Summary:
    """All statistics of one checkpoint."""

    name: str
    parameters: int
    tables: tuple[Table, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    outliers: tuple[Outlier, ...] = ()
    spikes: dict[str, float] = field(default_factory=dict)


def summarise(checkpoint: Checkpoint, embedding: str | None = None) -> Summary:
    """The statistics of a checkpoint; each matrix is read once, and at most four at the same time.

    Args:
        checkpoint: the checkpoint to read.
        embedding: name of the token embedding; by default, every tensor with one of the usual names.

    Raises:
        ConfigError: if the checkpoint has no tensor of that name, or a tensor is of a type that cannot be read.
        IntegrityError: if the step rows of the run are damaged.
    """
    if embedding is not None and embedding not in checkpoint.shapes:
        raise ConfigError(f"{checkpoint.name}: has no tensor '{embedding}'")
    flat = [name for name, shape in checkpoint.shapes.items() if len(shape) == 2 and min(shape) > 1]
    tabled = {n for n in flat if n == embedding or (embedding is None and EMBEDDING.search(n)) or HEAD.search(n)}
    tables = tuple(_table(name, checkpoint.read(name)) for name in flat if name in tabled)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        matrices = pool.map(lambda name: _matrix(name, checkpoint.read(name)), [n for n in flat if n not in tabled])
        found = tuple(_natural(list(matrices)))
    parameters = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    return Summary(checkpoint.name, parameters, tables, found, _outliers(found), _spikes(checkpoint))


def _table(name: str, table: NDArray[np.float32]) -> Table:
    norms = np.sqrt(_row_squares(table))
    return Table(name, len(table), variability(table), (float(norms.min()), float(norms.mean()), float(norms.max())))


def _matrix(name: str, matrix: NDArray[np.float32]) -> Matrix:
    numbers = NUMBER.findall(name)
    squares = float(_row_squares(matrix).sum())
    bad = 0 if math.isfinite(squares) else int((~np.isfinite(matrix)).sum())
    sigma = spectral_norm(matrix) if bad == 0 else math.nan
    rank = squares / sigma**2 if sigma else math.nan
    shape = (matrix.shape[0], matrix.shape[1])
    layer = int(numbers[0]) if numbers else None
    rms = math.sqrt(squares / matrix.size)
    return Matrix(name, NUMBER.sub("*", name, count=1), layer, shape, rms, sigma, rank, bad)


def _row_squares(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared L2 norms of the rows of (M, N): (M,)."""
    return np.einsum("ij,ij->i", matrix, matrix).astype(np.float64)


def _natural(matrices: list[Matrix]) -> list[Matrix]:
    order = {group: place for place, group in enumerate(dict.fromkeys(matrix.group for matrix in matrices))}
    return sorted(matrices, key=lambda m: (order[m.group], -1 if m.layer is None else m.layer))


def _outliers(matrices: tuple[Matrix, ...]) -> tuple[Outlier, ...]:
    found: list[Outlier] = []
    for group in dict.fromkeys(matrix.group for matrix in matrices):
        mine = [matrix for matrix in matrices if matrix.group == group]
        for statistic in ("rms", "spectral_norm"):
            values = {m.name: getattr(m, statistic) for m in mine if getattr(m, statistic) > 0}
            if len(values) < LEAST_LAYERS:
                continue
            middle = statistics.median(values.values())
            logs = {name: math.log(value / middle) for name, value in values.items()}
            spread = 1.4826 * statistics.median(abs(log) for log in logs.values())
            limit = max(OUTLIER * spread, math.log(1.25))
            found += [Outlier(name, statistic, math.exp(log)) for name, log in logs.items() if abs(log) > limit]
    return tuple(found)


def _spikes(checkpoint: Checkpoint) -> dict[str, float]:
    if checkpoint.steps is None:
        return {}
    try:
        rows = [row for row in load_steps(checkpoint.steps.parent) if row["step"] > 0]
        losses = [float(row["loss"]) for row in rows]
        norms = [float(row["grad_norm"]) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{checkpoint.steps}: damaged ({type(error).__name__}: {error})") from error
    return {
        "loss, 7 sd of the last 1,000 (%)": spike_share(losses, 7),
        "gradient norm, 7 sd of the last 1,000 (%)": spike_share(norms, 7),
        "loss, 10 sd of the last 1,000 (%)": spike_share(losses, 10),
        "loss above the rolling median + 0.1 (per 10,000)": median_spikes(losses),
    }
