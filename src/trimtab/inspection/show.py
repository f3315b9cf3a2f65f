"""Summaries as tables for the terminal, as a trajectory over several checkpoints, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from trimtab.config import printable
from trimtab.inspection.summary import Matrix, Summary
from trimtab.inspection.tev import TevPoint, axis_of

BARS = "▁▂▃▄▅▆▇█"


def show(summary: Summary, console: Console) -> None:
    """Print one checkpoint."""
    console.print(Text(printable(f"{summary.name}: {summary.parameters:,} parameters"), style="bold"))
    for table in summary.tables:
        tev = table.tev
        console.print(
            Text(
                printable(
                    f"  {table.name}: {table.tokens:,} tokens, TEV mean {tev['tev_mean']:.4f}, deviation "
                    f"{tev['tev_std']:.4f}, 5 % {tev['tev_q05']:.4f}, 50 % {tev['tev_q50']:.4f}, 95 % "
                    f"{tev['tev_q95']:.4f}; row norms {table.row_norms[0]:.3g} to {table.row_norms[2]:.3g}, mean "
                    f"{table.row_norms[1]:.3g}"
                )
            )
        )
    if not summary.tables and summary.matrices:
        console.print(Text("  no tensor has the usual name of a token embedding; give its name with --embedding"))
    if summary.matrices:
        console.print(_grid(summary))
    for outlier in summary.outliers:
        kind = outlier.statistic.replace("_", " ")
        console.print(
            Text(printable(f"  outlier: {outlier.name}, {kind} {outlier.ratio:.2f}x the median of its layers"))
        )
    for matrix in summary.matrices:
        if matrix.non_finite:
            console.print(Text(printable(f"  not finite: {matrix.name}, {matrix.non_finite} entries")))
    for what, score in summary.spikes.items():
        console.print(Text(f"  spikes of {what}: {score:.3g}"))


def _grid(summary: Summary) -> Grid:
    grid = Grid(box=None, padding=(0, 2, 0, 0))
    for column in ("matrix", "layers", "RMS by layer", "spectral norm by layer", "stable rank"):
        grid.add_column(column, justify="left" if column in ("matrix",) else "right")
    for group in dict.fromkeys(matrix.group for matrix in summary.matrices):
        mine = [matrix for matrix in summary.matrices if matrix.group == group]
        ranks = [matrix.stable_rank for matrix in mine]
        grid.add_row(
            Text(printable(group)),
            str(len(mine)),
            Text(_course([matrix.rms for matrix in mine])),
            Text(_course([matrix.spectral_norm for matrix in mine])),
            f"{min(ranks):.3g} to {max(ranks):.3g}" if len(ranks) > 1 else f"{ranks[0]:.3g}",
        )
    return grid


def _course(values: Sequence[float]) -> str:
    ends = f"{values[0]:.3g}" if len(values) == 1 else f"{values[0]:.3g} .. {values[-1]:.3g}"
    return f"{sparkline(values)} {ends}" if len(values) > 1 else ends


def sparkline(values: Sequence[float]) -> str:
    """One bar per value, scaled from the minimum to the maximum; a dot for a value that is not finite."""
    sound = [value for value in values if math.isfinite(value)]
    if not sound:
        return "." * len(values)
    low, span = min(sound), (max(sound) - min(sound)) or 1.0
    return "".join(BARS[int((v - low) / span * (len(BARS) - 1))] if math.isfinite(v) else "." for v in values)


def trajectory(summaries: Sequence[Summary]) -> dict[str, list[float]]:
    """TEV, and size and spectrum of each group of matrices, over checkpoints in the given order."""
    found: dict[str, list[float]] = {}
    for summary in summaries:
        for table in summary.tables:
            found.setdefault(f"TEV mean, {table.name}", []).append(table.tev["tev_mean"])
            found.setdefault(f"TEV deviation, {table.name}", []).append(table.tev["tev_std"])
        for group in dict.fromkeys(matrix.group for matrix in summary.matrices):
            mine = [matrix for matrix in summary.matrices if matrix.group == group]
            found.setdefault(f"RMS, {group}", []).append(_mean_square(mine))
            found.setdefault(f"largest spectral norm, {group}", []).append(max(m.spectral_norm for m in mine))
    return {name: values for name, values in found.items() if len(values) == len(summaries)}


def _mean_square(matrices: Sequence[Matrix]) -> float:
    return math.sqrt(sum(matrix.rms**2 for matrix in matrices) / len(matrices))


def show_trajectory(summaries: Sequence[Summary], console: Console) -> None:
    """Print the trajectory, one line per quantity."""
    console.print(Text(printable(f"{len(summaries)} checkpoints, {summaries[0].name} to {summaries[-1].name}")))
    grid = Grid(box=None, padding=(0, 2, 0, 0))
    for column in ("quantity", "course", "first", "last", "change"):
        grid.add_column(column, justify="left" if column in ("quantity", "course") else "right")
    for name, values in trajectory(summaries).items():
        change = f"{values[-1] / values[0]:.3f}x" if values[0] else "-"
        grid.add_row(Text(printable(name)), sparkline(values), f"{values[0]:.4g}", f"{values[-1]:.4g}", change)
    console.print(grid)


def show_tev(points: Sequence[TevPoint], console: Console) -> None:
    """Print TEV of a family, one line per checkpoint, and the course of mean and spread."""
    axis, _ = axis_of(points)
    grid = Grid(box=None, padding=(0, 2, 0, 0))
    for column in ("checkpoint", "step", "parameters", "tokens", "TEV mean", "spread", "5 %", "50 %", "95 %"):
        grid.add_column(column, justify="left" if column == "checkpoint" else "right")
    for point in points:
        statistics = (
            point.tev.get(name, math.nan) for name in ("tev_mean", "tev_std", "tev_q05", "tev_q50", "tev_q95")
        )
        grid.add_row(
            Text(printable(point.name)),
            "-" if point.step is None else f"{point.step:,}",
            f"{point.parameters:,}" if point.parameters else "-",
            f"{point.tokens:,}" if point.tokens else "-",
            *(f"{value:.4f}" for value in statistics),
        )
    console.print(grid)
    if len(points) > 1:
        for name, title in (("tev_mean", "mean"), ("tev_std", "spread")):
            console.print(Text(f"TEV {title} by {axis}: {_course([point.tev[name] for point in points])}"))


def as_json(summaries: Sequence[Summary | TevPoint]) -> str:
    """All statistics as JSON; numbers that are not finite are null."""
    return json.dumps([_finite(asdict(summary)) for summary in summaries], indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
