"""Parts: the modules that own weights, each with its share of a weight that several parts use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trimtab.host.names import Part


@dataclass(frozen=True, slots=True)
class PartView:
    """One part of one layer: the module that plays the role, and the rows of its weight that belong to the part.

    Attributes:
        owner: the module that holds the part as ``attribute``.
        rows: the rows of the weight that belong to this part, where several parts share one matrix: a slice, or
            their indices where the parts are interleaved.
        transposed: whether the module stores its weight as (in, out).
    """

    part: Part
    layer: int | None
    owner: nn.Module
    attribute: str
    rows: slice | Tensor | None = None
    transposed: bool = False

    @property
    def module(self) -> nn.Module:
        """The module that plays this role now."""
        return cast(nn.Module, getattr(self.owner, self.attribute))

    @property
    def stored(self) -> nn.Parameter | None:
        """The parameter behind the weight, which parts may share or tie; None if the weight is computed from others."""
        return stored_weight(self.module)

    @property
    def weight(self) -> Tensor:
        """The effective weight of this part, (out, in) for a linear part; a view, but a copy of interleaved rows."""
        weight = cast(Tensor, self.module.weight)
        weight = weight.mT if self.transposed else weight
        return weight if self.rows is None else weight[self.rows]

    def write(self, value: Tensor) -> None:
        """Set this part's weight, (out, in), leaving the other parts of a shared matrix alone.

        Raises:
            TypeError: if a method computes the weight from other parameters.
        """
        weight = cast(Tensor, self.module.weight)
        if not isinstance(weight, nn.Parameter):
            raise TypeError(f"the weight of {self.part} is computed from other parameters, so it cannot be written")
        with torch.no_grad():
            weight = weight.mT if self.transposed else weight
            weight[slice(None) if self.rows is None else self.rows] = value.to(weight)

    def replace(self, module: nn.Module) -> None:
        """Put another module in the place of the one that plays this role."""
        setattr(self.owner, self.attribute, module)


def stored_weight(module: nn.Module) -> nn.Parameter | None:
    """The parameter behind a module's weight, seen through a parametrization, without computing that weight."""
    if parametrize.is_parametrized(module, "weight"):
        return cast(nn.Parameter, cast(Any, module).parametrizations.weight.original)
    return module._parameters.get("weight")
