"""Statistics of one checkpoint: spread of token vectors, size and spectrum of every matrix, layers that stand out."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimtab.config import ConfigError
from trimtab.inspection.checkpoints import Checkpoint
from trimtab.probes import median_spikes, spike_share
from trimtab.probes.token_embedding_variability import row_deviations, summary
from trimtab.run.folder import load_steps

EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|token_embedding|token_embd|embed_in|word_embeddings|tok_embeddings)\.weight$"
)  # noqa: E501
HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|head|output)\.weight$")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
VECTORS, ITERATIONS = 6, 5
OUTLIER = 5.0  # robust deviations of the logarithm, and at least a quarter off the median
LEAST_LAYERS = 5


@dataclass(frozen=True, slots=True)
class Table:
    """A table of token vectors: TEV statistics by name, and the L2 norms of its rows."""

    name: str
    tokens: int
    tev: dict[str, float]
    row_norms: tuple[float, float, float]  # least, mean, greatest


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight matrix. The spectral norm comes from subspace iteration, and is from below."""

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
    """A matrix unlike those in the same place of other layers: value over their median."""

    name: str
    statistic: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What one checkpoint says."""

    name: str
    parameters: int
    tables: tuple[Table, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    outliers: tuple[Outlier, ...] = ()
    spikes: dict[str, float] = field(default_factory=dict)


def summarise(checkpoint: Checkpoint, embedding: str | None = None) -> Summary:
    """Read each matrix once, one at a time.

    Args:
        checkpoint: what to read.
        embedding: name of the token embedding, where it goes by none of the usual names.

    Raises:
        ConfigError: if the embedding is not there.
    """
    if embedding is not None and embedding not in checkpoint.shapes:
        raise ConfigError(f"{checkpoint.name}: has no tensor '{embedding}'")
    tables: list[Table] = []
    matrices: list[Matrix] = []
    for name, shape in checkpoint.shapes.items():
        if len(shape) != 2:
            continue
        is_table = name == embedding or (embedding is None and EMBEDDING.search(name)) or HEAD.search(name)
        if is_table:
            tables.append(_table(name, checkpoint.read(name)))
        elif min(shape) > 1:
            matrices.append(_matrix(name, checkpoint.read(name)))
    parameters = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    found = tuple(_natural(matrices))
    return Summary(checkpoint.name, parameters, tuple(tables), found, _outliers(found), _spikes(checkpoint))


def _table(name: str, table: Tensor) -> Table:
    norms = table.norm(dim=1)
    tev = {key: float(value) for key, value in summary(row_deviations(table)).items()}
    return Table(name, len(table), tev, (float(norms.min()), float(norms.mean()), float(norms.max())))


def _matrix(name: str, matrix: Tensor) -> Matrix:
    bad = int((~matrix.isfinite()).sum())
    numbers = NUMBER.findall(name)
    squares = float(matrix.square().sum(dtype=torch.float64))
    sigma = spectral_norm(matrix) if bad == 0 else math.nan
    rank = squares / sigma**2 if sigma else math.nan
    shape = (matrix.shape[0], matrix.shape[1])
    layer = int(numbers[0]) if numbers else None
    rms = math.sqrt(squares / matrix.numel())
    return Matrix(name, NUMBER.sub("*", name, count=1), layer, shape, rms, sigma, rank, bad)


def spectral_norm(matrix: Tensor) -> float:
    """Largest singular value, from below, to about a thousandth: a few vectors at once converge in a few steps."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(wide.shape[0], min(VECTORS, wide.shape[0]), generator=generator)
    for _ in range(ITERATIONS):
        basis, _ = torch.linalg.qr(wide @ (wide.mT @ basis))
    return float(torch.linalg.matrix_norm(wide.mT @ basis, 2))


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
    rows = [row for row in load_steps(checkpoint.steps.parent) if row["step"] > 0]
    losses, norms = [float(row["loss"]) for row in rows], [float(row["grad_norm"]) for row in rows]
    return {
        "loss, 7 sd of the last 1,000 (%)": spike_share(losses, 7),
        "gradient norm, 7 sd of the last 1,000 (%)": spike_share(norms, 7),
        "loss, 10 sd of the last 1,000 (%)": spike_share(losses, 10),
        "loss above the rolling median + 0.1 (per 10,000)": median_spikes(losses),
    }
