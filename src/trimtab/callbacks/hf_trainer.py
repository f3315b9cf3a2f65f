"""Probes and rules in the Trainer of the transformers library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback
from typing_extensions import override

from trimtab.hosts import host_or_model
from trimtab.intervention import GradientRule, UpdateRule
from trimtab.probe import Preset
from trimtab.probes import standard
from trimtab.rules import AttachedRules, RulesError, attach
from trimtab.sink import Sink
from trimtab.watching import Watch, watch


class ProbesCallback(TrainerCallback):
    """Attaches probes when training begins, and removes them when it ends.

    Gradients are read after the Trainer has clipped them, as the optimizer receives them. With ``torch_compile=True``
    the Trainer compiles the model before it calls its callbacks. In that case call ``trimtab.watch`` before the
    Trainer is created, instead of using this callback.

    Attributes:
        watch: the active watch; None outside training.
    """

    def __init__(
        self,
        preset: Preset = standard,
        *,
        every: int | None = None,
        only: Sequence[str] = (),
        sinks: Sequence[Sink] = (),
        fused: bool = False,
    ) -> None:
        self.preset = preset
        self.every = every
        self.only = tuple(only)
        self.sinks = tuple(sinks)
        self.fused = fused
        self.watch: Watch | None = None
        self.last: dict[str, float] = {}

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_train_end(args, state, control)  # removes the watch of an earlier training that failed
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps the optimizer
        self.watch = watch(
            host_or_model(getattr(model, "module", model)),
            self.preset,
            optimizer=inner,
            every=self.every,
            only=self.only,
            sinks=self.sinks,
            fused=self.fused,
            run=args.run_name or "run",
            step=state.global_step,  # training may resume from a checkpoint
        )

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.watch is not None:
            self.last = self.watch.last

    @override
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.watch is not None:
            self.last = self.watch.last
            self.watch.remove()
            self.watch = None


class RulesCallback(TrainerCallback):
    """Attaches gradient rules and update rules when training begins, and removes them when it ends.

    The state of the rules is saved and restored with the optimizer's, in the checkpoints of the Trainer.

    Args:
        rules: the rules, in the order in which they act.
        copies: as for ``trimtab.rules.attach``.

    Attributes:
        attached: the attached rules; None outside training.

    Raises:
        RulesError: when training begins, if the Trainer clips gradients by itself and a rule replaces that.
    """

    def __init__(
        self, *rules: GradientRule | UpdateRule, copies: Sequence[nn.Module | Mapping[str, Tensor]] = ()
    ) -> None:
        self.rules = rules
        self.copies = copies
        self.attached: AttachedRules | None = None

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_train_end(args, state, control)  # removes the rules of an earlier training that failed
        replacing = [rule.slug() for rule in self.rules if isinstance(rule, GradientRule) and rule.replaces]
        if replacing and args.max_grad_norm:
            raise RulesError(
                f"{replacing[0]} replaces the clipping of the Trainer: set max_grad_norm=0 in TrainingArguments"
            )
        optimizer = kwargs["optimizer"]
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps the optimizer
        self.attached = attach(inner, kwargs["model"], self.rules, copies=self.copies)

    @override
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.attached is not None:
            self.attached.remove()
            self.attached = None
