"""Checkpoints on disk as named tensors that are read singly: safetensors, sharded folders, GGUF, run folders."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from trimtab.config import ConfigError, printable, shown
from trimtab.inspection.safetensors_file import CONVERT, SafetensorsFile
from trimtab.run.folder import STEPS, IntegrityError, load_outcome

INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MARK = re.compile(r"(?:.*\.)?trimtab\.(\w+)\.installed")  # as methods name themselves in saved weights; see method/
REMEDY = (
    "pickled checkpoints can run code when they are opened, so they are not read. If you trust the file, convert it: "
    "sd = torch.load(FILE, weights_only=True); "
    "safetensors.torch.save_file({k: v.contiguous().clone() for k, v in sd.items()}, 'model.safetensors')"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Named tensors, each read when it is asked for.

    Attributes:
        name: title in tables.
        shapes: by tensor name, with the axes in the order of torch.
        read: returns one tensor in float32.
        steps: file with the step rows of the finished run that the weights belong to; None if there is no such run.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], NDArray[np.float32]]
    steps: Path | None = None


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file or folder.

    Raises:
        ConfigError: if the path holds no checkpoint that can be read, or a pickled one; the message says how to convert
            it.
        IntegrityError: if a file is damaged.
    """
    if not exists(path):
        raise ConfigError(f"{path}: no such file or folder")
    if path.is_dir():
        return _folder(path)
    refuse_special(path)
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file starts with the length of its header, whose bytes can equal the start of a pickle or a zip
    # file; byte 8 tells them apart, because the header is JSON.
    pickled = (head[:2] == b"PK" or head[:1] == b"\x80") and head[8:] != b"{"
    if path.suffix in PICKLED or pickled:
        raise ConfigError(f"{path}: {REMEDY}")
    if path.suffix == ".gguf" or head[:4] == b"GGUF":
        return _gguf(path)
    return _safetensors(path.name, [path])


def exists(path: Path) -> bool:
    """Whether a path can be followed to a file or folder; False too for a name that no file can have."""
    try:
        return path.exists()
    except OSError:
        return False


def refuse_special(path: Path) -> None:
    """Refuse a named pipe, a socket or a device: reading one could block for ever, or never end.

    Raises:
        ConfigError: if the path is neither a plain file nor a folder.
    """
    if exists(path) and not path.is_file() and not path.is_dir():
        raise ConfigError(f"{path}: not a plain file; copy the weights into one")


def _folder(path: Path) -> Checkpoint:
    index = path / INDEX
    if (path / "spec.toml").is_file() and (path / STEPS).is_file():
        return _run(path)
    refuse_special(index)
    if index.is_file():
        return _safetensors(path.name, [path / name for name in _shards(index)])
    single = sorted(path.glob("*.safetensors"))
    if single:
        return _safetensors(path.name, single)
    gguf = sorted(path.glob("*.gguf"))
    if len(gguf) == 1:
        return _gguf(gguf[0])
    if any(file.suffix in PICKLED for file in path.iterdir()):
        raise ConfigError(f"{path}: {REMEDY}")
    raise ConfigError(f"{path}: the folder holds no safetensors file and no single GGUF file, and is no run folder")


def _run(path: Path) -> Checkpoint:
    finished = load_outcome(path, named=False) is not None  # a copy of a run folder may have another name
    stored = sorted((path / "checkpoints").glob("*.safetensors"))
    steps = path / STEPS if finished else None
    if not stored and steps is None:
        raise ConfigError(f"{path}: the run has not finished and has written no weights")
    weights = _safetensors(path.name, stored[-1:])
    return Checkpoint(weights.name, weights.shapes, weights.read, steps)


def _shards(index: Path) -> list[str]:
    """The names of the files that an index of a sharded checkpoint lists."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{index}: damaged, not JSON ({error}); download the file again") from error
    weight_map = cast("dict[str, object]", content).get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise IntegrityError(
            f"{index}: damaged, holds no table 'weight_map' from tensor to file name; download the file again"
        )
    names: set[str] = set()
    for tensor, name in cast("dict[str, object]", weight_map).items():
        if not isinstance(name, str):
            problem = f"the file name of tensor {shown(tensor)} is {shown(name)}, not a string"
            raise IntegrityError(f"{index}: damaged, {problem}; download the file again")
        names.add(name)
    for name in sorted(names):
        # A symbolic link may lead out of the folder, as in the cache of the Hugging Face hub; a name may not.
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise IntegrityError(f"{index}: names {shown(name)}, which is outside the folder; correct the index")
        if not exists(index.parent / name) or (index.parent / name).is_dir():
            raise IntegrityError(f"{index}: names {shown(name)}, which is not there; download the missing file")
    return sorted(names)


def _safetensors(name: str, files: Sequence[Path]) -> Checkpoint:
    home: dict[str, SafetensorsFile] = {}
    for path in files:
        refuse_special(path)
        try:
            file = SafetensorsFile(path)
        except SafetensorError as error:
            new_type = re.search(r"unknown variant `(\w+)`", str(error))
            if new_type is not None:
                raise ConfigError(
                    f"{path}: holds a tensor of type {new_type[1]}; this type cannot be read; {CONVERT}"
                ) from error
            raise IntegrityError(f"{path}: damaged, or not a safetensors file ({error})") from error
        home |= dict.fromkeys(file.shapes, file)
    marks = {key: match[1] for key in home if (match := MARK.fullmatch(key))}
    shapes = {key: file.shapes[key] for key, file in home.items() if key not in marks}
    methods = f" with {', '.join(sorted(marks.values()))}" if marks else ""
    return Checkpoint(printable(name + methods), shapes, lambda key: home[key].read(key))


def _gguf(path: Path) -> Checkpoint:
    refuse_special(path)
    try:
        from trimtab.inspection.gguf_tensors import TensorReader, entries, torch_shape
    except ImportError as error:
        raise ConfigError(
            f"{path}: reading GGUF requires the package gguf; pip install 'trimtab[gguf]' installs it"
        ) from error
    try:
        reader = TensorReader(path)
    except (ValueError, IndexError, OSError, KeyError, OverflowError, TypeError, struct.error) as error:
        raise IntegrityError(f"{path}: damaged, or not a GGUF file ({error})") from error
    if reader.byte_order != "I":
        raise ConfigError(
            f"{path}: the file has the byte order of another machine; convert it with gguf-convert-endian"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: torch_shape(tensor) for name, tensor in tensors.items()}
    return Checkpoint(printable(path.name), shapes, lambda key: entries(tensors[key]))
