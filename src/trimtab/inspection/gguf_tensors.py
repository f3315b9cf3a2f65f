"""Tensors of GGUF files, without the arrays of the metadata: listing the vocabulary of a tokenizer takes seconds."""

from __future__ import annotations

import struct
import sys
from typing import Any, cast

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader, GGUFValueType, ReaderTensor
from gguf.quants import dequantize
from numpy.typing import NDArray
from typing_extensions import override

from trimtab.config import ConfigError

# Entries dequantised in one call: the intermediate results take several times the memory, and must fit the cache.
ENTRIES_AT_A_TIME = 1 << 16
DEEPEST = 16  # arrays inside arrays; each level takes a level of Python's recursion


class TensorReader(GGUFReader):
    """The reader of the gguf package, except that it skips the arrays in the metadata in place of listing them."""

    @override
    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        return self._after_array(orig_offs, 1) - orig_offs, [], [], [GGUFValueType.ARRAY]

    def _after_array(self, start: int, depth: int) -> int:
        """The offset of the first byte after the array at ``start``.

        Raises:
            ValueError: if the array holds an unknown type, reaches beyond the file or is nested more than 16 deep.
        """
        if depth > DEEPEST:
            raise ValueError(f"arrays in the metadata are nested more than {DEEPEST} deep")
        raw_kind, count = self._unpack("IQ", start)
        kind = GGUFValueType(raw_kind)
        at = start + 12
        if kind == GGUFValueType.STRING:
            for _ in range(count):
                at = self._inside(at + 8 + self._unpack("Q", at)[0])
        elif kind == GGUFValueType.ARRAY:
            for _ in range(count):
                at = self._after_array(at, depth + 1)
        else:
            at += count * np.dtype(self.gguf_scalar_to_np[kind]).itemsize
        return self._inside(at)

    def _unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        native = self.byte_order == "I"
        order = "<" if (sys.byteorder == "little") == native else ">"
        return struct.unpack_from(order + layout, memoryview(cast(Any, self.data)), offset)

    def _inside(self, offset: int) -> int:
        if offset > len(self.data):
            raise ValueError("an array in the metadata reaches beyond the end of the file")
        return offset


def torch_shape(tensor: ReaderTensor) -> tuple[int, ...]:
    """The shape with the axes in the order of torch; GGUF lists the innermost axis first."""
    return tuple(int(n) for n in tensor.shape[::-1])


def entries(tensor: ReaderTensor) -> NDArray[np.float32]:
    """The entries of one tensor, dequantised, in the shape of ``torch_shape``.

    Raises:
        ConfigError: if the package gguf cannot dequantise its type.
    """
    length, size = GGML_QUANT_SIZES[tensor.tensor_type]  # entries of a block, bytes of a block
    blocks = tensor.data.reshape(-1).view(np.uint8).reshape(-1, size)
    out = np.empty((len(blocks), length), np.float32)
    step = max(1, ENTRIES_AT_A_TIME // length)
    for start in range(0, len(blocks), step):
        # One long row, because gguf works on 16 rows at a time, which is slow if the rows are short.
        row = blocks[start : start + step].reshape(1, -1)
        try:
            out[start : start + step] = dequantize(row, tensor.tensor_type).reshape(-1, length)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise ConfigError(f"{tensor.name}: gguf cannot read {kind}; convert the file to F16 or Q8_0") from error
    return out.reshape(torch_shape(tensor))
