"""Notices the operations that read a number from a tensor back to the host."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

READS_A_NUMBER = (torch.ops.aten._local_scalar_dense.default,)


class NoNumbers(TorchDispatchMode):
    """Notes the operations that read a number from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS_A_NUMBER:
            self.operations.append(str(func))
        return func(*args, **(kwargs or {}))
