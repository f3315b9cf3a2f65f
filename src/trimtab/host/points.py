"""Points: tensors that probes read, at the edges of modules and inside attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from torch import Tensor, nn

from trimtab.host.slot import Slot

AttentionWatcher = Callable[[Tensor, Tensor, Tensor | None, float], None]
"""Called with rotated queries BHTK and keys BGSK after every edit, the mask (None: causal; boolean: True is visible;
else added to the scores), and the factor that scores are scaled by."""


@dataclass(frozen=True, slots=True)
class Point:
    """A tensor at the edge of a module, which may be read but not changed.

    Attributes:
        what: its name in metric keys, such as ``qkv_output``; points with the same name and layer are pooled.
        gradient: whether its gradient is that of this place alone; false where the tensor is also used elsewhere.
    """

    what: str
    layer: int | None
    module: nn.Module
    side: Literal["input", "output"]
    gradient: bool = True


@dataclass(frozen=True, slots=True)
class AttentionPoint:
    """One attention layer whose queries and keys may be watched.

    Attributes:
        layer: index of the layer; None where attention was found by the name of its module.
        num_heads: number of query heads; None if it shows only when the layer is called.
        watch: adds a watcher; returns the function that takes it away again.
        scores: edits of the scores, which a watcher applies to the rows it looks at.
        weights: edits of the weights after the softmax.
        cap: soft cap of the scores that is built into the family; None if the family has none.
    """

    layer: int | None
    num_heads: int | None
    watch: Callable[[AttentionWatcher], Callable[[], None]]
    scores: Slot = field(default_factory=Slot)
    weights: Slot = field(default_factory=Slot)
    cap: float | None = None


def block_points(
    layer: int, edges: dict[str, tuple[Sequence[nn.Module], nn.Module, str]], *, shared: Sequence[str] = ()
) -> list[Point]:
    """Input and output points of one block's linear layers.

    Args:
        layer: index of the block.
        edges: by name (``qkv``, ``fc1`` ...): the modules that produce the output, and the module and side where
            the input they share can be read once, so that its gradient is the sum over all of them.
        shared: names whose input is the residual stream itself, whose gradient is not that of this input alone.
    """
    points: list[Point] = []
    for name, (producers, carrier, side) in edges.items():
        edge = cast(Literal["input", "output"], side)
        points.append(Point(f"{name}_input", layer, carrier, edge, name not in shared))
        points += [Point(f"{name}_output", layer, producer, "output") for producer in producers]
    return points
