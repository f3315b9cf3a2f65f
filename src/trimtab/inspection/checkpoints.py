"""Checkpoints on disk as named tensors that are read one at a time: safetensors, sharded folders, GGUF, run folders."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trimtab.config import ConfigError
from trimtab.run.folder import OUTCOME, STEPS, IntegrityError

ROWS_AT_A_TIME = 8192
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
    read: Callable[[str], Tensor]
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
        head = file.read(4)
    if path.suffix in PICKLED or head[:2] == b"PK" or head[:1] == b"\x80":
        raise ConfigError(f"{path}: {REMEDY}")
    if path.suffix == ".gguf" or head == b"GGUF":
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


def _nothing(name: str) -> Tensor:
    raise KeyError(name)


def _safetensors(name: str, files: Mapping[str, Path]) -> Checkpoint:
    shapes: dict[str, tuple[int, ...]] = {}
    home: dict[str, Any] = {}
    for file in files.values():
        try:
            opened = safe_open(file, framework="pt")
            for key in opened.keys():  # noqa: SIM118 (it has no iterator)
                shapes[key], home[key] = tuple(opened.get_slice(key).get_shape()), opened
        except SafetensorError as error:
            raise IntegrityError(f"{file}: damaged, or no safetensors file ({error})") from error

    def read(key: str) -> Tensor:
        return home[key].get_tensor(key).float()

    return Checkpoint(name, shapes, read)


def _gguf(path: Path) -> Checkpoint:
    try:
        from gguf.quants import dequantize

        from trimtab.inspection.gguf_tensors import TensorReader
    except ImportError as error:
        raise ConfigError(f"{path}: reading GGUF takes the package gguf: pip install 'trimtab[gguf]'") from error
    try:
        reader = TensorReader(path)
    except (ValueError, IndexError, OSError, KeyError, struct.error) as error:
        raise IntegrityError(f"{path}: damaged, or no GGUF file ({error})") from error
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read(key: str) -> Tensor:
        tensor = tensors[key]
        out = torch.empty(tuple(int(n) for n in tensor.shape[::-1]))
        for start in range(0, len(out), ROWS_AT_A_TIME):  # dequantising takes several times the memory of its result
            rows = tensor.data[start : start + ROWS_AT_A_TIME]
            out[start : start + ROWS_AT_A_TIME] = torch.from_numpy(np.array(dequantize(rows, tensor.tensor_type)))
        return out

    # GGUF counts axes from the innermost.
    return Checkpoint(path.name, {k: tuple(int(n) for n in t.shape[::-1]) for k, t in tensors.items()}, read)
