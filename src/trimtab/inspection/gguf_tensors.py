"""GGUF files without their vocabularies: a tokenizer's arrays take seconds to list, and weights are all we read."""

from __future__ import annotations

import struct
from typing import Any, cast

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader, GGUFValueType, ReaderTensor
from gguf.quants import dequantize
from numpy.typing import NDArray
from typing_extensions import override

from trimtab.config import ConfigError

ENTRIES_AT_A_TIME = 1 << 16  # what dequantising makes on its way, several times its result, then stays in the cache


class TensorReader(GGUFReader):
    """The reader of the gguf package, stepping over arrays in the metadata; where it cannot, it lists them."""

    @override
    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        data = memoryview(cast(Any, self.data))
        kind, count = struct.unpack_from("=IQ", data, orig_offs)
        at = orig_offs + 12
        if kind == GGUFValueType.STRING:
            for _ in range(count):
                at += 8 + struct.unpack_from("=Q", data, at)[0]
        elif GGUFValueType(kind) in self.gguf_scalar_to_np:
            at += count * self.gguf_scalar_to_np[GGUFValueType(kind)]().itemsize
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        return at - orig_offs, [], [], [GGUFValueType.ARRAY]


def torch_shape(tensor: ReaderTensor) -> tuple[int, ...]:
    """The shape as torch has it: GGUF counts axes from the innermost."""
    return tuple(int(n) for n in tensor.shape[::-1])


def entries(tensor: ReaderTensor) -> NDArray[np.float32]:
    """The entries of one tensor, dequantised, in the shape that torch has.

    Raises:
        ConfigError: if the package gguf cannot dequantise its type.
    """
    length, size = GGML_QUANT_SIZES[tensor.tensor_type]  # a block's entries, and its bytes
    blocks = tensor.data.reshape(-1).view(np.uint8).reshape(-1, size)
    out = np.empty((len(blocks), length), np.float32)
    step = max(1, ENTRIES_AT_A_TIME // length)
    for start in range(0, len(blocks), step):
        # As one row: gguf goes through rows sixteen at a time, which for short ones is mostly overhead.
        row = blocks[start : start + step].reshape(1, -1)
        try:
            out[start : start + step] = dequantize(row, tensor.tensor_type).reshape(-1, length)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise ConfigError(f"{tensor.name}: gguf cannot read {kind}; convert the file to F16 or Q8_0") from error
    return out.reshape(torch_shape(tensor))
