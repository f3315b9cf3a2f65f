"""Probes and rules in the Trainer of Lightning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from trimtab.hosts import host_or_model
from trimtab.intervention import GradientRule, UpdateRule
from trimtab.probe import Preset
from trimtab.probes import standard
from trimtab.rules import AttachedRules, RulesError
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
        fused: bool = False,
        run: str = "run",
    ) -> None:
        self.preset = preset
        self.attribute = attribute
        self.every = every
        self.only = tuple(only)
        self.sinks = tuple(sinks)
        self.fused = fused
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
            fused=self.fused,
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


class RulesCallback(Callback):
    """Attaches gradient rules and update rules when fitting begins, and removes them when it ends.

    The state of the rules is saved and restored with the optimizer's, in the checkpoints of Lightning.

    Args:
        rules: the rules, in the order in which they act.
        attribute: name of the attribute of the LightningModule that holds the model; empty for the module itself.
        copies: as for ``trimtab.rules.attach``.

    Attributes:
        attached: the attached rules; None outside of fitting.

    Raises:
        RulesError: when fitting begins, if the Trainer clips gradients by itself and a rule replaces that, or if there
            is not exactly one optimizer.
    """

    def __init__(
        self,
        *rules: GradientRule | UpdateRule,
        attribute: str = "model",
        copies: Sequence[nn.Module | Mapping[str, Tensor]] = (),
    ) -> None:
        self.rules = rules
        self.attribute = attribute
        self.copies = copies
        self.attached: AttachedRules | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise RulesError(f"rules act with exactly one optimizer, but this module has {len(trainer.optimizers)}")
        replacing = [rule.slug() for rule in self.rules if isinstance(rule, GradientRule) and rule.replaces]
        if replacing and trainer.gradient_clip_val:
            raise RulesError(f"{replacing[0]} replaces the clipping of the Trainer: leave out gradient_clip_val")
        model: Any = getattr(pl_module, self.attribute) if self.attribute else pl_module
        optimizer = trainer.optimizers[0]
        # Lightning makes the gradients in a closure within the step: the hook before the step would come too early.
        self.attached = AttachedRules(optimizer, model, self.rules, copies=self.copies)
        attached = self.attached
        attached.hook(optimizer.register_step_post_hook(lambda *_: attached.after_step()))

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self.attached is not None:
            self.attached.before_step()

    def _remove(self) -> None:
        if self.attached is not None:
            self.attached.remove()
            self.attached = None

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()
