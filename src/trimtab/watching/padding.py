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
        """The mask (B, T) of a call; None if there is none, or one of another form."""
        mask = kwargs.get(self.name, args[self.place] if len(args) > self.place else None)
        return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def mask_argument(model: nn.Module) -> MaskArgument | None:
    """The argument of a model's call that is its padding mask; None if it has none."""
    parameters = list(inspect.signature(model.forward).parameters)
    for name in (*KEEPS, *HIDES):
        if name in parameters:
            return MaskArgument(name, parameters.index(name), name in HIDES)
    return None


class Padding:
    """The padding of the present forward pass.

    Attributes:
        valid: (B, T), false where a position is padding; None if no position is, or none is known.
        known: whether the model was called with a mask.
    """

    def __init__(self) -> None:
        self.valid: Tensor | None = None
        self.known = False

    def enter(self, mask: Tensor | None, hides: bool) -> None:
        """A forward pass begins with this mask, or with none."""
        self.known = mask is not None
        self.valid = None
        if mask is not None:
            valid = (~mask if mask.dtype is torch.bool else mask == 0) if hides else mask != 0
            # On a device that would be a transfer; there padding is left out whether there is any or not.
            self.valid = None if mask.device.type == "cpu" and bool(valid.all()) else valid

    def counts(self) -> Tensor | None:
        """Padded positions and all positions of the pass, (2,); None if no mask is known or no position is padding."""
        if self.valid is None:
            return None
        return torch.stack(((~self.valid).sum(), torch.ones_like(self.valid).sum()))

    def rows_of(self, x: Tensor) -> Tensor | None:
        """Which rows, along the axes before the last, are tokens; None if all are, or if x has other rows.

        Args:
            x: (B, T, ...) or (B * T, ...).
        """
        valid = self.valid
        if valid is None or x.ndim < 2:
            return None
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
