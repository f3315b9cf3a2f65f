"""One safetensors file, read without torch: importing torch takes longer than reading most files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from trimtab.config import ConfigError

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
BY_TORCH = {"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"}  # numpy has no 8-bit floats
CONVERT = "convert the file to F32, F16 or BF16"


class SafetensorsFile:
    """Tensors of one file, each read when it is asked for.

    Attributes:
        shapes: by tensor name.

    Raises:
        SafetensorError: on construction, if the file is damaged or not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="numpy"):  # checks the header against the length of the file
            self._path = path
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = cast("dict[str, dict[str, Any]]", json.loads(file.read(size)))
        self._start = 8 + size
        self._records = {name: record for name, record in header.items() if name != "__metadata__"}
        self.shapes = {name: tuple(cast("list[int]", record["shape"])) for name, record in self._records.items()}

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor in float32, in the shape that ``shapes`` names.

        Raises:
            KeyError: if the file has no such tensor.
            ConfigError: if its type is not one that can be widened to float32.
        """
        record = self._records[name]
        if record["dtype"] not in DTYPES:
            return _by_torch(self._path, name, record["dtype"])
        dtype = np.dtype(DTYPES[record["dtype"]])
        first, end = cast("tuple[int, int]", record["data_offsets"])
        stored = np.fromfile(self._path, dtype, (end - first) // dtype.itemsize, offset=self._start + first)
        values = _widened(stored) if record["dtype"] == "BF16" else stored.astype(np.float32, copy=False)
        return values.reshape(self.shapes[name])


def _widened(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Bfloat16 as float32: it is the upper half of a float32, and numpy has no such type."""
    return np.left_shift(halves, 16, dtype=np.uint32).view(np.float32)


def _by_torch(path: Path, name: str, dtype: str) -> NDArray[np.float32]:
    """A tensor of 8-bit floats; only for these is torch imported."""
    problem = f"{path}: '{name}' is of type {dtype}; this type cannot be read; {CONVERT}"
    if dtype not in BY_TORCH:
        raise ConfigError(problem)
    try:
        with safe_open(path, framework="pt") as file:
            return cast(Any, file).get_tensor(name).float().numpy()
    except (SafetensorError, AttributeError, TypeError, RuntimeError) as error:  # an older torch lacks the type
        raise ConfigError(problem) from error
