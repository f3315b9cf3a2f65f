"""Readings of whole weights: spread of token vectors, spectral norms by power iteration, statistics of all together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.probe import MatrixProbe, ModelProbe, TableProbe
from trimtab.watching.pack import Pack
from trimtab.watching.parameters import Key, Weight, first_row, is_sharded, local, share
from trimtab.watching.tensors import Reading, metric

FIRST_ITERATIONS = 30
Matrix = Callable[[], Tensor]
ROWS_AT_A_TIME = 4096


class TableMeter:
    """Reads token tables row by row; ranks that hold different rows fill different places."""

    def __init__(self, tables: Sequence[Weight], probes: Sequence[TableProbe], pack: Pack) -> None:
        self.tables, self.probes = tuple(tables), tuple(probes)
        for table in self.tables:
            for probe in self.probes:
                pack.add(_region(probe.slug, table.key), (table.effective().shape[0],))

    def read(self, pack: Pack, group: dist.ProcessGroup | None, *, alone: bool) -> None:
        """Fill this rank's rows in."""
        for table in self.tables:
            weight = table.effective()
            rows, first = local(weight), first_row(weight)
            if share(weight, group, alone=alone) == 0:
                continue  # another rank has the same rows
            for probe in self.probes:
                place = pack[_region(probe.slug, table.key)]
                for start in range(0, len(rows), ROWS_AT_A_TIME):
                    piece = probe.rows(rows[start : start + ROWS_AT_A_TIME]).to(place.dtype)
                    begin = first + start
                    place[begin : begin + len(piece)] = piece

    def values(self, pack: Pack) -> list[Reading]:
        """Statistics by metric key."""
        found: list[Reading] = []
        for table in self.tables:
            for probe in self.probes:
                named = probe.values(pack[_region(probe.slug, table.key)])
                values = torch.stack(list(named.values()))
                found.append(Reading([metric(table.key, name) for name in named], values, torch.ones_like(values)))
        return found


class MatrixMeter:
    """Follows the largest singular value of each matrix: many iterations at first, then one a reading."""

    def __init__(self, matrices: Sequence[tuple[Key, Matrix]], probes: Sequence[MatrixProbe], pack: Pack) -> None:
        self.probes = tuple(probes)
        self.matrices = [(key, matrix) for key, matrix in matrices if self.probes]
        self._directions: dict[Key, Tensor] = {}
        for key, matrix in self.matrices:
            pack.add(_region("power", key), (matrix().shape[1],))
            pack.add(_region("frobenius", key), ())

    def read(self, pack: Pack, group: dist.ProcessGroup | None, *, alone: bool) -> None:
        """One iteration on this rank's rows: W^T W u, whose parts add up over the ranks."""
        for key, find in self.matrices:
            whole = find()
            matrix, factor = local(whole).float(), share(whole, group, alone=alone)
            if key not in self._directions or self._directions[key].device != matrix.device:
                self._directions[key] = _start(whole)
            u = self._directions[key]
            if factor:
                pack[_region("power", key)].copy_(matrix.mT @ (matrix @ u))
                pack[_region("frobenius", key)].copy_(matrix.square().sum())

    def restart(self, row: Mapping[str, float]) -> None:
        """Begin afresh where the row shows a norm that is not finite: its direction is lost."""
        for key in list(self._directions):
            values = (row.get(metric(key, probe.slug), 0.0) for probe in self.probes)
            if not all(math.isfinite(value) for value in values):
                del self._directions[key]

    def values(self, pack: Pack) -> list[Reading]:
        """Statistics by metric key."""
        if not self.matrices:
            return []
        moved = [pack[_region("power", key)] for key, _ in self.matrices]
        for (key, _), vector in zip(self.matrices, moved, strict=True):
            self._directions[key] = F.normalize(vector, dim=0).float()
        spectral = torch.stack([vector.norm() for vector in moved])
        frobenius = torch.stack([pack[_region("frobenius", key)] for key, _ in self.matrices])
        keys = [key for key, _ in self.matrices]
        return [
            Reading(
                [metric(key, probe.slug) for key in keys], probe.value(spectral, frobenius), torch.ones_like(frobenius)
            )
            for probe in self.probes
        ]


class ModelMeter:
    """Reads all parameters together; every rank has them whole, so nothing is merged."""

    def __init__(self, model: nn.Module, probes: Sequence[ModelProbe]) -> None:
        self.model, self.probes = model, tuple(probes)

    def values(self) -> list[Reading]:
        """Statistics by metric key.

        Raises:
            ValueError: for sharded parameters, of which no rank has the whole.
        """
        if not self.probes:
            return []
        parameters = [(name, p.detach()) for name, p in self.model.named_parameters()]
        if any(is_sharded(p) for _, p in parameters):
            raise ValueError("statistics of all weights cannot be read under fully_shard: leave the probe out")
        matrices = [p for _, p in parameters if p.ndim == 2]
        biases = [p for name, p in parameters if name.rsplit(".", 1)[-1] == "bias"]
        found: list[Reading] = []
        for probe in self.probes:
            for what, named in zip(("weights", "biases"), probe.values(matrices, biases), strict=True):
                if named:
                    values = torch.stack(list(named.values()))
                    names = [metric((f"all_{what}", "model"), name) for name in named]
                    found.append(Reading(names, values, torch.ones_like(values)))
        return found


def _region(what: str, key: Key) -> str:
    return f"{what}/{key[0]}/{key[1]}"


def _start(whole: Tensor) -> Tensor:
    matrix = (cast(Any, whole).full_tensor() if is_sharded(whole) else whole).float()
    # Its own generator: the streams of the training run stay as they are.
    generator = torch.Generator().manual_seed(0)
    u = F.normalize(torch.randn(matrix.shape[1], generator=generator).to(matrix.device), dim=0)
    for _ in range(FIRST_ITERATIONS):
        u = F.normalize(matrix.mT @ (matrix @ u), dim=0)
    return u
