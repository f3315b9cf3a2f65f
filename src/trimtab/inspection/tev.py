"""Token embedding variability (TEV) of a family of checkpoints: mean and spread over the tokens, by step or size."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.config import ConfigError, printable
from trimtab.inspection.checkpoints import PICKLED, Checkpoint, exists, open_checkpoint, refuse_special
from trimtab.inspection.summary import EMBEDDING
from trimtab.inspection.variability import variability
from trimtab.run.folder import OUTCOME, READINGS, load_outcome, load_readings

SAFE = (".safetensors", ".gguf")
WHOLE = ("model", "pytorch_model")  # file stems that every checkpoint folder uses, so they do not name a checkpoint
SHARD = re.compile(r"-\d+-of-\d+$")
STEP = re.compile(r"(?:step|checkpoint|iter|ckpt)[-_]?(\d+)", re.IGNORECASE)
TEV = "tev_mean"
# Largest over smallest number of parameters. From this ratio on, checkpoints count as sizes of one family; below it,
# they can be one model with different heads.
FAMILY = 1.5


@dataclass(frozen=True, slots=True)
class TevPoint:
    """One table of token vectors.

    Attributes:
        name: name of the checkpoint; for a reading of a run, name of the run and step.
        table: name of the table.
        step: step of training; None if neither the name nor the run gives it.
        parameters: number of parameters of the whole checkpoint; 0 for a reading of a run.
        tokens: number of rows of the table; 0 for a reading of a run.
        tev: statistics of TEV by name.
    """

    name: str
    table: str
    step: int | None
    parameters: int
    tokens: int
    tev: dict[str, float]


def tev_points(paths: Sequence[Path], embedding: str | None = None) -> list[TevPoint]:
    """TEV of every checkpoint among the paths, and of every checkpoint in the folders among them.

    The points are in the order of steps, or of sizes if there are no steps, or else in the given order, with the
    checkpoints of a folder in natural order. A run folder gives its readings of TEV, and its final weights if it has
    them.

    Args:
        paths: checkpoints, and folders of checkpoints.
        embedding: name of the token embedding; by default, the first tensor with one of the usual names.

    Raises:
        ConfigError: if a path holds no checkpoint, or a checkpoint cannot be read or has no token embedding.
        IntegrityError: if a checkpoint is damaged.
    """
    found: list[TevPoint] = []
    for path in paths:
        members = _members(path)
        if not members:
            raise ConfigError(f"{path}: neither a checkpoint nor a folder that holds one")
        for member in members:
            found += _of_run(member) if _is_run(member) else []
            if not _is_run(member) or list((member / "checkpoints").glob("*.safetensors")):
                found.append(_of_checkpoint(open_checkpoint(member), member, embedding))
    if not found:
        raise ConfigError(
            f"{paths[0]}: the runs in it have neither weights nor readings of TEV; set probes.named in the run file"
        )
    axis, places = axis_of(found)
    runs = axis == "step" and any(not point.parameters for point in found)  # the points of a run stay together
    return found if runs else [found[place] for place in sorted(range(len(found)), key=lambda i: (places[i], i))]


def axis_of(points: Sequence[TevPoint]) -> tuple[str, list[float]]:
    """The quantity of the horizontal axis (step, parameters or the order of the points), and its value by point."""
    steps = [point.step for point in points]
    if all(step is not None for step in steps) and len(set(steps)) > 1:
        return "step", [float(step or 0) for step in steps]
    sizes = [point.parameters for point in points]
    if all(sizes) and max(sizes) >= FAMILY * min(sizes):
        return "parameters", [float(size) for size in sizes]
    return "checkpoint", [float(place) for place in range(len(points))]


def _members(path: Path) -> list[Path]:
    if not exists(path):
        raise ConfigError(f"{path}: no such file or folder")
    refuse_special(path)
    path = path.resolve()  # the path "." has no name
    if path.is_file() or _is_run(path):
        return [path]
    folders = [child for child in path.iterdir() if child.is_dir() and (_is_run(child) or _is_one(child))]
    # Trainers write the final weights beside the folders of the checkpoints.
    own = [path] if _is_one(path) else _stored(path)
    return sorted([*folders, *own], key=lambda member: (member == path, _natural(member)))


def _stored(folder: Path) -> list[Path]:
    """Files of weights; pickled files only if there are no others, because the state of an optimizer is pickled too."""
    files = [child for child in folder.iterdir() if child.is_file() and child.suffix in (*SAFE, *PICKLED)]
    return [file for file in files if file.suffix in SAFE] or files


def _is_one(folder: Path) -> bool:
    """Whether the files of weights in a folder belong to one model; otherwise each file is a checkpoint."""
    files = _stored(folder)
    sharded = bool(files) and all(SHARD.search(file.stem) for file in files)
    whole = any(file.stem in WHOLE for file in files)
    return sharded or whole or (len(files) == 1 and (folder / "config.json").is_file())


def _is_run(path: Path) -> bool:
    return (path / "spec.toml").is_file() and (path / OUTCOME).is_file()


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _of_checkpoint(checkpoint: Checkpoint, path: Path, embedding: str | None) -> TevPoint:
    wanted = [name for name in checkpoint.shapes if name == embedding or (embedding is None and EMBEDDING.search(name))]
    if not wanted:
        problem = (
            f"has no tensor '{embedding}'" if embedding else "has no tensor with the usual name of a token embedding"
        )
        raise ConfigError(f"{path}: {problem}; name it with --embedding")
    shape = checkpoint.shapes[wanted[0]]
    if len(shape) != 2 or 0 in shape:
        raise ConfigError(f"{path}: '{wanted[0]}' is not a table of token vectors: its shape is {list(shape)}")
    name = path.parent.name if path.is_file() and path.stem in WHOLE else path.name
    step = STEP.search(name)
    outcome = load_outcome(path, named=False) if _is_run(path) else None
    return TevPoint(
        name=printable(name),
        table=wanted[0],
        step=int(step[1]) if step else outcome.steps if outcome is not None else None,
        parameters=sum(math.prod(one) for one in checkpoint.shapes.values()),
        tokens=shape[0],
        tev=variability(checkpoint.read(wanted[0])),
    )


def _of_run(path: Path) -> list[TevPoint]:
    outcome = load_outcome(path, named=False)  # checks the readings against their SHA-256
    if outcome is None or not (path / READINGS).is_file():
        return []
    points: list[TevPoint] = []
    last = outcome.steps if list((path / "checkpoints").glob("*.safetensors")) else None
    for row in load_readings(path):
        key = next((key for key in row if key.startswith("embedding") and key.endswith(f"/{TEV}")), None)
        if key is None or row["step"] == last:
            continue  # the final weights give the last point
        stem = key.removesuffix(TEV)
        tev = {name.removeprefix(stem): float(value) for name, value in row.items() if name.startswith(f"{stem}tev_")}
        points.append(
            TevPoint(f"{printable(path.name)} at step {row['step']}", stem.rstrip("/"), int(row["step"]), 0, 0, tev)
        )
    return points
