"""Gradient variance over the micro-batches of a step, from hooks on the leaves, without a copy of any gradient."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.probe import GradientNoiseProbe
from trimtab.watching.pack import Pack
from trimtab.watching.parameters import Key, is_sharded, plain
from trimtab.watching.tensors import Reading

LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


class ShardedError(RuntimeError):
    """A probe cannot be read from sharded parameters."""


class NoiseMeter:
    """Adds up ||g_k||^2 as each micro-batch's gradient arrives, and keeps the norm of their sum.

    The sum's norm is that before any clipping. Where nothing changes the gradients between the last micro-batch and the
    reading, it is taken once, then; else after each micro-batch, as none can know that it is the last. Which of the two
    holds is seen at each reading for the next one: where clipping begins in between, one reading is lost. Over several
    ranks the sum exists only after they averaged, so there it is taken from the gradients that the reading saw.
    """

    def __init__(
        self,
        model: nn.Module,
        embedding: Key | None,
        key_of: dict[str, Key],
        probes: Sequence[GradientNoiseProbe],
        pack: Pack,
    ) -> None:
        self.model, self.key_of, self.probes, self.pack = model, key_of, tuple(probes), pack
        self.row_of = {key: row for row, key in enumerate(dict.fromkeys(key_of.values()))}
        self.groups = _groups(list(self.row_of), embedding)
        pack.add("noise", (len(self.row_of),))
        self._sums: dict[str, Tensor] = {}
        self._left: dict[str, tuple[Tensor, int, int]] = {}  # each gradient's identity and version, when added to
        self._once, self._settled = False, False
        self.guarded: Callable[[Callable[[], None]], None] = lambda action: action()

    def attach(self) -> list[Any]:
        """Hook the leaves for one reading; returns the handles.

        Raises:
            ShardedError: for sharded parameters, whose micro-batch gradients no hook sees.
        """
        self._sums, self._left = {}, {}
        if not self.probes:
            return []
        named = ((plain(name), p) for name, p in self.model.named_parameters() if p.requires_grad)
        leaves = [(name, p) for name, p in named if name in self.key_of]
        if any(is_sharded(p) for _, p in leaves):
            raise ShardedError("gradient variance cannot be read under fully_shard: leave the probe out")
        return [
            handle
            for name, p in leaves
            for handle in (
                p.register_hook(self._adding(self.row_of[self.key_of[name]])),
                p.register_post_accumulate_grad_hook(self._keeping(name)),
            )
        ]

    def _adding(self, row: int) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            self.guarded(lambda: self._add(gradient, row))

        return add

    def _add(self, gradient: Tensor, row: int) -> None:
        self.pack["noise"][row] += _square(gradient)

    def _keeping(self, name: str) -> Callable[[Tensor], None]:
        def keep(p: Tensor) -> None:
            self.guarded(lambda: self._keep(name, p))

        return keep

    def _keep(self, name: str, p: Tensor) -> None:
        if p.grad is None:
            return
        self._settled = False
        self._left[name] = (p, *_mark(p))
        if not self._once:
            self._sums[name] = _square(p.grad)

    def settle(self) -> None:
        """Take the norms of the sums that are still to be taken; before the gradients are changed, if they can be."""
        if self._settled or not self._left:
            return
        as_left = all(_mark(p) == (identity, version) for p, identity, version in self._left.values())
        if self._once:
            self._sums = {n: _square(p.grad) for n, (p, *_) in self._left.items() if p.grad is not None and as_left}
        self._once, self._settled, self._left = as_left, True, {}

    def values(self, world: int, num: int, gradients: dict[Key, Tensor]) -> list[Reading]:
        """Statistics by metric key; none with a single micro-batch.

        Args:
            world: ranks; they average their gradients, so each adds 1 / world of its own to the sum.
            num: micro-batches of one rank.
            gradients: squares of the averaged gradients by key, looked at with several ranks.
        """
        total = num * world
        if not self.probes or total < 2:
            return []
        noise = self.pack["noise"] / world**2
        if world == 1:
            gradients = {}
            for name, square in self._sums.items():
                key = self.key_of[name]
                gradients[key] = gradients[key] + square if key in gradients else square
        names: list[str] = []
        values: list[tuple[Tensor, Tensor]] = []
        for (what, where), keys in self.groups.items():
            present = [key for key in keys if key in gradients]
            if present:
                names.append(f"{what}_grad/{where}")
                of_parts = torch.stack([noise[self.row_of[key]] for key in present]).sum()
                values.append((of_parts, torch.stack([gradients[key] for key in present]).sum()))
        found: list[Reading] = []
        for probe in self.probes if values else ():
            read = torch.stack([probe.value(of_parts, of_sum, total) for of_parts, of_sum in values])
            found.append(Reading([f"{name}/{probe.slug}" for name in names], read, torch.ones_like(read)))
        return found


def _mark(p: Tensor) -> tuple[int, int]:
    """What tells whether a parameter's gradient is another, or was changed in place."""
    return (0, 0) if p.grad is None else (id(p.grad), p.grad._version)


def _square(gradient: Tensor) -> Tensor:
    """Sum of squares, in double precision where there is one.

    As a dot product: on a CPU a norm of a million entries takes three times as long, and is off in the fifth digit.
    """
    flat = gradient.detach().reshape(-1)
    flat = flat.float() if flat.element_size() < 4 else flat
    square = flat.dot(flat)
    return square if square.device.type == "mps" else square.double()


def _groups(keys: Sequence[Key], embedding: Key | None) -> dict[Key, list[Key]]:
    """Whose variances are added up: everything, the embedding, and each layer with its norms and biases."""
    groups: dict[Key, list[Key]] = {("all", "model"): list(keys)}
    if embedding is not None:
        groups[embedding] = [embedding]
    for key in keys:
        # By the first number in a name, as families name their layers.
        layer = LAYER.search(key[1])
        if layer:
            groups.setdefault(("all", f"layer.{layer[1]}"), []).append(key)
    return groups
