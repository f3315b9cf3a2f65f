"""Checkpoints on disk as named tensors that are read one at a time: safetensors, sharded folders, GGUF, run folders."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from trimtab.config import ConfigError
from trimtab.inspection.safetensors_file import SafetensorsFile
from trimtab.run.folder import OUTCOME, STEPS, IntegrityError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
REMEDY = (
    "pickled checkpoints can run code when they are opened, so they are not read. Convert it where you trust it: "
    "sd = torch.load(FILE, weights_only=True); "
    "safetensors.torch.save_file({k: v.contiguous().clone() for k, v in sd.items()}, 'model.safetensors')"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Named tensors, read when asked for.

    Attributes:
        name: what to call it in tables.
        shapes: by tensor name, as torch has them.
        read: gives one tensor in float32.
        steps: the step rows of the run it belongs to; None where there is no run.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], NDArray[np.float32]]
    steps: Path | None = None


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file or folder.

    Raises:
        ConfigError: if nothing there can be read, or it is pickled; the message says how to convert it.
        IntegrityError: if a file is damaged.
    """
    if not path.exists():
        raise ConfigError(f"{path}: there is nothing")
    if path.is_dir():
        return _folder(path)
    with path.open("rb") as file:
        head = file.read(9)
    # The header's length, eight bytes, may begin as a pickle does; what follows it in safetensors is JSON.
    pickled = (head[:2] == b"PK" or head[:1] == b"\x80") and head[8:] != b"{"
    if path.suffix in PICKLED or pickled:
        raise ConfigError(f"{path}: {REMEDY}")
    if path.suffix == ".gguf" or head[:4] == b"GGUF":
        return _gguf(path)
    return _safetensors(path.name, {"": path})


def _folder(path: Path) -> Checkpoint:
    index = path / "model.safetensors.index.json"
    run = (path / "spec.toml").is_file() and (path / STEPS).is_file()
    if run:
        stored = sorted((path / "checkpoints").glob("*.safetensors"))
        steps = path / STEPS if (path / OUTCOME).is_file() else None
        if not stored and steps is None:
            raise ConfigError(f"{path}: the run has not finished, and left no weights")
        found = _safetensors(path.name, {"": stored[-1]}) if stored else Checkpoint(path.name, {}, _nothing)
        return Checkpoint(found.name, found.shapes, found.read, steps)
    if index.is_file():
        try:
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise IntegrityError(f"{index}: damaged ({type(error).__name__}: {error})") from error
        missing = sorted(name for name in files if not (path / name).is_file())
        if missing:
            raise IntegrityError(f"{index}: names {missing[0]}, which is not there")
        return _safetensors(path.name, {name: path / name for name in sorted(files)})
    single = sorted(path.glob("*.safetensors"))
    if single:
        return _safetensors(path.name, {file.name: file for file in single})
    gguf = sorted(path.glob("*.gguf"))
    if len(gguf) == 1:
        return _gguf(gguf[0])
    if any(file.suffix in PICKLED for file in path.iterdir()):
        raise ConfigError(f"{path}: {REMEDY}")
    raise ConfigError(f"{path}: holds no safetensors, no single GGUF file, and is no run folder")


def _nothing(name: str) -> NDArray[np.float32]:
    raise KeyError(name)


def _safetensors(name: str, files: Mapping[str, Path]) -> Checkpoint:
    home: dict[str, SafetensorsFile] = {}
    for path in files.values():
        try:
            file = SafetensorsFile(path)
        except SafetensorError as error:
            raise IntegrityError(f"{path}: damaged, or no safetensors file ({error})") from error
        home |= dict.fromkeys(file.shapes, file)
    return Checkpoint(name, {key: file.shapes[key] for key, file in home.items()}, lambda key: home[key].read(key))


def _gguf(path: Path) -> Checkpoint:
    try:
        from trimtab.inspection.gguf_tensors import TensorReader, entries, torch_shape
    except ImportError as error:
        raise ConfigError(f"{path}: reading GGUF takes the package gguf: pip install 'trimtab[gguf]'") from error
    try:
        reader = TensorReader(path)
    except (ValueError, IndexError, OSError, KeyError, struct.error) as error:
        raise IntegrityError(f"{path}: damaged, or no GGUF file ({error})") from error
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: torch_shape(tensor) for name, tensor in tensors.items()}
    return Checkpoint(path.name, shapes, lambda key: entries(tensors[key]))
