"""One safetensors file read without torch, which takes longer to import than most files take to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip


class SafetensorsFile:
    """Tensors of one file, read when asked for.

    Attributes:
        shapes: by tensor name, as torch has them.

    Raises:
        SafetensorError: on construction, if the file is damaged or none of the kind.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="numpy"):  # checks that header and length fit each other
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
        """
        record = self._records[name]
        if record["dtype"] not in DTYPES:
            return _by_torch(self._path, name)
        dtype = np.dtype(DTYPES[record["dtype"]])
        first, end = cast("tuple[int, int]", record["data_offsets"])
        stored = np.fromfile(self._path, dtype, (end - first) // dtype.itemsize, offset=self._start + first)
        values = _widened(stored) if record["dtype"] == "BF16" else stored.astype(np.float32, copy=False)
        return values.reshape(self.shapes[name])


def _widened(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Bfloat16 is the upper half of a float32, and numpy has no name for it."""
    return np.left_shift(halves, 16, dtype=np.uint32).view(np.float32)


def _by_torch(path: Path, name: str) -> NDArray[np.float32]:
    """Types that numpy has not, such as the 8-bit floats; here torch is imported after all."""
    with safe_open(path, framework="pt") as file:
        return cast(Any, file).get_tensor(name).float().numpy()
