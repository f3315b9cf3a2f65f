"""GGUF files without their vocabularies: a tokenizer's arrays take seconds to list, and weights are all we read."""

from __future__ import annotations

import struct
from typing import Any, cast

from gguf import GGUFReader, GGUFValueType
from typing_extensions import override


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
