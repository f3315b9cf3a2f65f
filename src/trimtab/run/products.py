"""Count the FLOPs of matrix products and of attention while a model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from typing_extensions import override


def count_flops(call: Callable[[], object], *, foreign: bool) -> int:
    """The FLOPs of a call.

    Args:
        call: runs a model.
        foreign: whether code from outside trimtab runs. It may use control flow of torch, such as ``torch.cond``,
            which only ``FlopCounterMode`` looks into.
    """
    if foreign:
        theirs = FlopCounterMode(display=False)
        with theirs:
            call()
        return theirs.get_total_flops()
    counter = ProductCounter()
    with counter:
        call()
    return counter.flops


class ProductCounter(TorchDispatchMode):
    """Adds up torch's own FLOP formulas inside a ``with`` block.

    It counts what ``FlopCounterMode`` counts, apart from control flow. That mode also attributes FLOPs to modules,
    which nobody needs here, and it imports torch._dynamo, which takes longer than to count a study.

    Attributes:
        flops: counted so far.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch._dynamo

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return NotImplemented
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        out = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out
