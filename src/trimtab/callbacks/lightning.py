"""Probes in the Trainer of Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from trimtab.hosts import host_or_model
from trimtab.probe import Preset
from trimtab.probes import standard
from trimtab.sink import Sink
from trimtab.watching import Watch, watch


class ProbesCallback(Callback):
    """Attaches probes when fitting begins, and removes them when it ends. Gradients are read before clipping.

    Attributes:
        attribute: name of the attribute of the LightningModule that holds the model to watch. Empty watches the module
            itself, which must then be called through its ``forward``.
        watch: the active watch; None outside of fitting.
    """

    def __init__(
        self,
        preset: Preset = standard,
        *,
        attribute: str = "model",
        every: int | None = None,
        only: Sequence[str] = (),
        sinks: Sequence[Sink] = (),
        run: str = "run",
    ) -> None:
        self.preset = preset
        self.attribute = attribute
        self.every = every
        self.only = tuple(only)
        self.sinks = tuple(sinks)
        self.run = run
        self.watch: Watch | None = None
        self.last: dict[str, float] = {}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = getattr(pl_module, self.attribute) if self.attribute else pl_module
        optimizers = trainer.optimizers
        if len(optimizers) != 1:
            raise ValueError(f"probes follow exactly one optimizer, but this module has {len(optimizers)}")
        self.watch = watch(
            host_or_model(model),
            self.preset,
            optimizer=optimizers[0],
            every=self.every,
            only=self.only,
            sinks=self.sinks,
            run=self.run,
        )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.watch is not None:
            self.watch.step = trainer.global_step  # training may resume from a checkpoint

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.watch is not None:
            self.watch.remove("failed")
            self.watch = None

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self.watch is not None:
            self.watch.see_gradients()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.watch is not None:
            self.last = self.watch.last
            self.watch.remove()
            self.watch = None
