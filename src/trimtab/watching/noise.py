"""Gradient variance over the micro-batches of a step, from hooks on the leaves, without a copy of any gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.probe import GradientNoiseProbe
from trimtab.watching.pack import Pack
from trimtab.watching.parameters import Key, is_sharded, plain, squares
from trimtab.watching.tensors import Reading, metric


class ShardedError(RuntimeError):
    """A probe cannot be read from sharded parameters."""


class NoiseMeter:
    """Adds up ||g_k||^2 as each micro-batch's gradient arrives, and keeps the norm of their sum.

    The norm of the sum is taken as the last micro-batch is added, before any clipping. Over several ranks the sum
    exists only after they averaged, so there it is taken from the gradients that the reading saw.
    """

    def __init__(
        self,
        model: nn.Module,
        embedding: Key | None,
        key_of: dict[str, Key],
        probes: Sequence[GradientNoiseProbe],
        pack: Pack,
    ) -> None:
        self.model, self.embedding, self.key_of, self.probes, self.pack = model, embedding, key_of, tuple(probes), pack
        pack.add("noise", (2,))  # all parameters, the embedding
        pack.add("micro_batches", ())
        self._sums: dict[str, Tensor] = {}
        self.guarded: Callable[[Callable[[], None]], None] = lambda action: action()

    def attach(self) -> list[Any]:
        """Hook the leaves for one reading; returns the handles.

        Raises:
            ShardedError: for sharded parameters, whose micro-batch gradients no hook sees.
        """
        self._sums = {}
        if not self.probes:
            return []
        leaves = [(plain(name), p) for name, p in self.model.named_parameters() if p.requires_grad]
        if any(is_sharded(p) for _, p in leaves):
            raise ShardedError("gradient variance cannot be read under fully_shard: leave the probe out")
        return [
            handle
            for name, p in leaves
            for handle in (
                p.register_hook(self._adding(self.key_of.get(name) == self.embedding)),
                p.register_post_accumulate_grad_hook(self._keeping(name)),
            )
        ]

    def _adding(self, is_embedding: bool) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            self.guarded(lambda: self._add(gradient, is_embedding))

        return add

    def _add(self, gradient: Tensor, is_embedding: bool) -> None:
        square = squares([gradient.detach()])[0]
        self.pack["noise"][0] += square
        if is_embedding:
            self.pack["noise"][1] += square

    def _keeping(self, name: str) -> Callable[[Tensor], None]:
        def keep(p: Tensor) -> None:
            self.guarded(lambda: self._keep(name, p))

        return keep

    def _keep(self, name: str, p: Tensor) -> None:
        if p.grad is not None:
            self._sums[name] = squares([p.grad.detach()])[0]

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
        if world > 1:
            sums = list(gradients.items())
        else:
            sums = [(self.key_of.get(name), square) for name, square in self._sums.items()]
        everything = torch.stack([square for _, square in sums]).sum()
        of_embedding = [square for key, square in sums if key == self.embedding]
        found: list[Reading] = []
        names, values = [("all_grad", "model")], [(noise[0], everything)]
        if self.embedding is not None and of_embedding:
            names.append((f"{self.embedding[0]}_grad", self.embedding[1]))
            values.append((noise[1], of_embedding[0]))
        for probe in self.probes:
            read = torch.stack([probe.value(squares_of, square_of, total) for squares_of, square_of in values])
            found.append(Reading([metric(key, probe.slug) for key in names], read, torch.ones_like(read)))
        return found
