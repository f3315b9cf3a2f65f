"""TEV of a family of checkpoints: its mean and spread over the vocabulary, against step or against size."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.config import ConfigError
from trimtab.inspection.checkpoints import PICKLED, Checkpoint, open_checkpoint
from trimtab.inspection.summary import EMBEDDING
from trimtab.inspection.variability import variability
from trimtab.run.folder import OUTCOME, READINGS, load_outcome, load_readings

SAFE = (".safetensors", ".gguf")
WHOLE = ("model", "pytorch_model")  # stems that name no checkpoint but a file of one
SHARD = re.compile(r"-\d+-of-\d+$")
STEP = re.compile(r"(?:step|checkpoint|iter|ckpt)[-_]?(\d+)", re.IGNORECASE)
TEV = "tev_mean"
FAMILY = 1.5  # largest over smallest from which checkpoints are sizes of one family, and not one model with other heads


@dataclass(frozen=True, slots=True)
class TevPoint:
    """One table of token vectors.

    Attributes:
        name: of the checkpoint, with its step where it is one reading of a run.
        table: name of the table.
        step: of training; None where neither name nor run says it.
        parameters: of the whole checkpoint; 0 where only readings are there.
        tokens: rows of the table; 0 where only readings are there.
        tev: its statistics by name.
    """

    name: str
    table: str
    step: int | None
    parameters: int
    tokens: int
    tev: dict[str, float]


def tev_points(paths: Sequence[Path], embedding: str | None = None) -> list[TevPoint]:
    """TEV of every checkpoint among the paths, and of those that lie in folders among them.

    In the order of steps or sizes where they have any, else as given, those of a folder in natural order.

    A run folder gives its readings of TEV over the run, and its final weights where it kept them.

    Args:
        paths: checkpoints, and folders of checkpoints.
        embedding: name of the token embedding, where it goes by none of the usual names.

    Raises:
        ConfigError: if nothing there is a checkpoint, one cannot be read, or one has no token embedding.
        IntegrityError: if one is damaged.
    """
    found: list[TevPoint] = []
    for path in paths:
        members = _members(path)
        if not members:
            raise ConfigError(f"{path}: neither a checkpoint nor a folder that holds any")
        for member in members:
            found += _of_run(member) if _is_run(member) else []
            if not _is_run(member) or list((member / "checkpoints").glob("*.safetensors")):
                found.append(_of_checkpoint(open_checkpoint(member), member, embedding))
    if not found:
        raise ConfigError(f"{paths[0]}: the runs there have neither weights nor readings of TEV")
    axis, places = axis_of(found)
    runs = axis == "step" and any(not point.parameters for point in found)  # each run by itself
    return found if runs else [found[place] for place in sorted(range(len(found)), key=lambda i: (places[i], i))]


def axis_of(points: Sequence[TevPoint]) -> tuple[str, list[float]]:
    """What the points are best shown against, and where each stands: step, parameters, or merely their order."""
    steps = [point.step for point in points]
    if all(step is not None for step in steps) and len(set(steps)) > 1:
        return "step", [float(step or 0) for step in steps]
    sizes = [point.parameters for point in points]
    if all(sizes) and max(sizes) >= FAMILY * min(sizes):
        return "parameters", [float(size) for size in sizes]
    return "checkpoint", [float(place) for place in range(len(points))]


def _members(path: Path) -> list[Path]:
    if not path.exists():
        raise ConfigError(f"{path}: there is nothing")
    path = path.resolve()  # "." has no name
    if path.is_file() or _is_run(path):
        return [path]
    folders = [child for child in path.iterdir() if child.is_dir() and (_is_run(child) or _is_one(child))]
    # A trainer leaves its last weights beside the folders of its checkpoints.
    own = [path] if _is_one(path) else _stored(path)
    return sorted([*folders, *own], key=lambda member: (member == path, _natural(member)))


def _stored(folder: Path) -> list[Path]:
    """Files of weights; pickled ones only where there are no others: an optimizer's state is pickled too."""
    files = [child for child in folder.iterdir() if child.is_file() and child.suffix in (*SAFE, *PICKLED)]
    return [file for file in files if file.suffix in SAFE] or files


def _is_one(folder: Path) -> bool:
    """Whether the files of weights in a folder are those of one model; else each is a checkpoint by itself."""
    files = _stored(folder)
    sharded = bool(files) and all(SHARD.search(file.stem) for file in files)
    whole = any(file.stem in WHOLE for file in files)
    return sharded or whole or (len(files) == 1 and (folder / "config.json").is_file())


def _is_run(path: Path) -> bool:
    return (path / "spec.toml").is_file() and (path / OUTCOME).is_file()


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _of_checkpoint(checkpoint: Checkpoint, path: Path, embedding: str | None) -> TevPoint:
    wanted = [name for name in checkpoint.shapes if name == embedding or (embedding is None and EMBEDDING.search(name))]
    if not wanted:
        problem = f"has no tensor '{embedding}'" if embedding else "has no token embedding among its names"
        raise ConfigError(f"{path}: {problem}; name it with --embedding")
    shape = checkpoint.shapes[wanted[0]]
    if len(shape) != 2 or 0 in shape:
        raise ConfigError(f"{path}: '{wanted[0]}' is no table of token vectors: its shape is {list(shape)}")
    name = path.parent.name if path.is_file() and path.stem in WHOLE else path.name
    step = STEP.search(name)
    outcome = load_outcome(path, named=False) if _is_run(path) else None
    return TevPoint(
        name=name,
        table=wanted[0],
        step=int(step[1]) if step else outcome.steps if outcome is not None else None,
        parameters=sum(math.prod(one) for one in checkpoint.shapes.values()),
        tokens=shape[0],
        tev=variability(checkpoint.read(wanted[0])),
    )


def _of_run(path: Path) -> list[TevPoint]:
    outcome = load_outcome(path, named=False)  # which holds the readings against its record
    if outcome is None or not (path / READINGS).is_file():
        return []
    points: list[TevPoint] = []
    last = outcome.steps if list((path / "checkpoints").glob("*.safetensors")) else None
    for row in load_readings(path):
        key = next((key for key in row if key.startswith("embedding") and key.endswith(f"/{TEV}")), None)
        if key is None or row["step"] == last:
            continue  # the weights themselves say the last
        stem = key.removesuffix(TEV)
        tev = {name.removeprefix(stem): float(value) for name, value in row.items() if name.startswith(f"{stem}tev_")}
        points.append(TevPoint(f"{path.name} at step {row['step']}", stem.rstrip("/"), int(row["step"]), 0, 0, tev))
    return points
