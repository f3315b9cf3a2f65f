"""The 14 statistics of weights from which training maps are drawn: size, sparsity and spectrum of all matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.probe import ModelProbe

OF_MATRICES = (
    "l1",
    "l2",
    "l1_over_l2",
    "trace",
    "spectral_norm",
    "trace_over_spectral_norm",
    "singular_mean",
    "singular_variance",
)
OF_ENTRIES = ("mean", "median", "variance")


def weight_statistics(
    matrices: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Eight means over matrices (M, N), and mean, median and variance of all their entries and of all biases.

    The two ratios are means over matrices that are not zero; without matrices there are no statistics. The trace of a
    matrix that is not square is the sum of its diagonal. The median of an even number of entries is the lower of the
    two middle entries. Variances are population variances. NaN in, NaN out.
    """
    of_biases = _of_entries(biases) if biases else {}
    if not matrices:
        return {}, of_biases
    rows = torch.stack([_of_matrix(matrix.float()) for matrix in matrices])
    not_zero = (rows[:, OF_MATRICES.index("l2")] != 0).sum()
    counts = [not_zero if "_over_" in name else torch.full_like(not_zero, len(rows)) for name in OF_MATRICES]
    means = rows.sum(0) / torch.stack(counts)
    return dict(zip(OF_MATRICES, means, strict=True)) | _of_entries(matrices), of_biases


def _of_matrix(matrix: Tensor) -> Tensor:
    l1 = matrix.abs().sum()
    l2 = matrix.norm()
    trace = matrix.diagonal().sum()
    if not torch.isfinite(l2):  # no decomposition of such a matrix exists
        return matrix.new_full((len(OF_MATRICES),), torch.nan)
    singular = torch.linalg.svdvals(matrix)
    sparsity, relative = (torch.where(l2 == 0, 0.0, a / b) for a, b in ((l1, l2), (trace, singular[0])))
    return torch.stack([l1, l2, sparsity, trace, singular[0], relative, singular.mean(), singular.var(correction=0)])


def _of_entries(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    entries = torch.cat([tensor.float().flatten() for tensor in tensors])
    return dict(zip(OF_ENTRIES, (entries.mean(), entries.median(), entries.var(correction=0)), strict=True))


TRAINING_MAP = ModelProbe(
    slug="training_map",
    unit="of the weight",
    meaning="14 statistics of all weight matrices and biases, from which hidden Markov models draw training maps",
    source="arXiv 2308.09543",
    cost="named",
    values=weight_statistics,
)
