"""Padded positions: the mask that the model is called with, and tensors without the positions that it hides."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

KEEPS = ("attention_mask",)  # not 0: a token
HIDES = ("src_key_padding_mask", "key_padding_mask")  # true, or minus infinity: padding


@dataclass(frozen=True, slots=True)
class MaskArgument:
    """An argument of a model's ``forward`` that tells which positions are padding.

    Attributes:
        place: its index among positional arguments.
        hides: whether it marks padding, and not tokens.
    """

    name: str
    place: int
    hides: bool

    def find(self, args: Any, kwargs: Any) -> Tensor | None:
        """The mask (B, T) of a call, not 0 where a position is a token; None if there is none, or of another form."""
        mask = kwargs.get(self.name, args[self.place] if len(args) > self.place else None)
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            return None
        if not self.hides:
            return mask
        return ~mask if mask.dtype is torch.bool else mask == 0


def mask_argument(model: nn.Module) -> MaskArgument | None:
    """The argument of a model's call that is its padding mask; None if it has none."""
    parameters = list(inspect.signature(model.forward).parameters)
    for name in (*KEEPS, *HIDES):
        if name in parameters:
            return MaskArgument(name, parameters.index(name), name in HIDES)
    return None


def is_batch_first(model: nn.Module) -> bool:
    """Whether tensors of a model are (B, T, ...), and not (T, B, ...), the default of torch's attention layers."""
    return next((module.batch_first for module in model.modules() if isinstance(module, nn.MultiheadAttention)), True)


class Padding:
    """The padding of the present forward pass.

    Args:
        batch_first: see ``is_batch_first``.

    Attributes:
        valid: (B, T), false where a position is padding; None if no position is, or none is known.
    """

    def __init__(self, batch_first: bool = True) -> None:
        self.valid: Tensor | None = None
        self._batch_first = batch_first

    def enter(self, mask: Tensor | None) -> Tensor:
        """A forward pass begins with a mask (B, T), not 0 where a position is a token, or with none.

        Returns:
            (4,): 1 if a mask is known, the number of passes (1), padded positions, and all positions of the mask.
        """
        self.valid = None
        if mask is None:
            return torch.tensor([0.0, 1.0, 0.0, 0.0])
        valid = mask != 0
        # On a device that would be a transfer; there padding is left out whether there is any or not.
        if mask.device.type != "cpu" or not bool(valid.all()):
            self.valid = valid
        ones = torch.ones_like(valid, dtype=torch.float32)
        return torch.stack((ones[0, 0], ones[0, 0], (~valid).sum(), ones.sum()))

    def rows_of(self, x: Tensor) -> Tensor | None:
        """Which rows, along the axes before the last, are tokens; None if all are, or if x has other rows.

        Args:
            x: (B, T, ...) or (B * T, ...), B and T exchanged if the batch does not come first.
        """
        valid = self.valid
        if valid is None or x.ndim < 2:
            return None
        if not self._batch_first:
            valid = valid.mT
        if x.shape[:2] == valid.shape:
            return valid
        return valid.reshape(-1) if x.ndim == 2 and len(x) == valid.numel() else None

    def left_out(self, x: Tensor) -> tuple[Tensor, Tensor | int]:
        """A tensor without its padding, and its number of entries; on a CPU without the rows, else with zeros there."""
        rows = self.rows_of(x)
        if rows is None:
            return x, x.numel()
        if x.device.type == "cpu":
            kept = x[rows]
            return kept, kept.numel()
        wide = rows[(...,) + (None,) * (x.ndim - rows.ndim)]
        return torch.where(wide, x, 0), rows.sum() * (x.numel() // rows.numel())
