"""The training loop, which yields one record per optimizer step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.accumulation import accumulating
from trimtab.gradients import Gradients
from trimtab.intervention import RunningLossTerm, RunningRule, RunningUpdateRule
from trimtab.loss import losses_of

MicroBatches = Sequence[Tensor]
BASE_LR = "initial_lr"  # the key that torch's schedulers use for the LR before the multiplier


class Verdict(StrEnum):
    """The decision of a gate about a step."""

    APPLY = "apply"
    SKIP = "skip"  # the optimizer does not step; the schedule advances
    STOP = "stop"  # the optimizer does not step, and training ends


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The record of one step. Tensors are 0-dim and stay on their device until they are read.

    Attributes:
        step: number of the step, from 1. Step 0 is the evaluation before training.
        multiplier: factor of every group's base LR; 0 for step 0.
        loss: mean training loss of the step's tokens before the update, in nats, without the loss terms; nan for step
            0.
        grad_norm: global L2 norm of the gradients before any rule; nan if no rule measures it.
        held_out_loss: loss on the held-out batch after the update, in nats; None if it was not evaluated.
        verdict: the decision of the gate.
        penalty: sum of the loss terms, in nats; None without loss terms.
    """

    step: int
    multiplier: float
    loss: Tensor
    grad_norm: Tensor
    held_out_loss: Tensor | None = None
    verdict: Verdict = Verdict.APPLY
    penalty: Tensor | None = None


@runtime_checkable
class Gate(Protocol):
    """Decides whether the optimizer steps, from the loss with its terms and the gradient norm (nan if no rule measures
    it).
    """

    def __call__(self, step: int, loss: Float[Tensor, ""], grad_norm: Float[Tensor, ""]) -> Verdict: ...

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of a training step, in the order in which they apply.

    Attributes:
        loss_terms: terms that are added to the loss.
        gradient: rules that modify ``.grad`` between backward and the optimizer step.
        gate: called after the gradient rules, with the gradient norm before them.
        update: rules that modify parameters after the optimizer step; not called if the gate refuses the step.
    """

    loss_terms: Sequence[RunningLossTerm] = ()
    gradient: Sequence[RunningRule] = ()
    gate: Gate | None = None
    update: Sequence[RunningUpdateRule] = ()

    def state_dict(self) -> dict[str, Any]:
        """The state of every rule, by kind and position."""
        return {name: rule.state_dict() for name, rule in self._named().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state from ``state_dict``.

        Raises:
            ValueError: if the state belongs to other rules; nothing is loaded.
        """
        rules = self._named()
        if set(state) != set(rules):
            raise ValueError(f"the state belongs to the rules {sorted(state)}, but these rules are {sorted(rules)}")
        for name, rule in rules.items():
            rule.load_state_dict(state[name])

    def _named(self) -> dict[str, Any]:
        kinds: dict[str, Sequence[Any]] = {
            "loss_term": self.loss_terms,
            "gradient": self.gradient,
            "gate": () if self.gate is None else (self.gate,),
            "update": self.update,
        }
        return {
            f"{kind}.{index}.{type(rule).__name__}": rule
            for kind, rules in kinds.items()
            for index, rule in enumerate(rules)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """When and how the held-out loss is computed.

    Attributes:
        loss: returns the held-out loss, 0-dim, in nats.
        after: the steps after which ``loss`` is called; step 0 is before training.
    """

    loss: Callable[[], Tensor]
    after: Collection[int] = field(default=())


def train(
    model: nn.Module,
    batches: Iterable[MicroBatches],
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float] = lambda step: 1.0,
    rules: Rules | None = None,
    *,
    evaluation: Evaluation | None = None,
    after_backward: Callable[[], None] = lambda: None,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Iterator[StepRecord]:
    """Train a model, and yield one record per step.

    Args:
        model: maps tokens (B, T) to logits (B, T, V), or to an object with ``logits``. It is put in training mode.
        batches: for each step, one or more micro-batches of token ids (B, T + 1). Their gradients are averaged.
        optimizer: the LR of each group becomes its base LR times the multiplier. The base LR is ``initial_lr`` if the
            group has it, as after a restart; otherwise it is the current LR of the group.
        schedule: the multiplier of a step counted from 0.
        rules: the rules of a step; None for no rules.
        evaluation: when and how the held-out loss is computed; None for no evaluation.
        after_backward: called when the gradients of a step are complete, before any gradient rule; for example
            ``see_gradients`` of a watch.
        precision: precision of forward and backward. The held-out loss is always computed in fp32.
    """
    rules = rules or Rules()
    nan = torch.tensor(float("nan"))
    if evaluation is not None and 0 in evaluation.after:
        yield StepRecord(0, 0.0, nan, nan, evaluation.loss())
    model.train()
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for group in optimizer.param_groups:
        group.setdefault(BASE_LR, group["lr"])
    optimizer.zero_grad(set_to_none=True)  # the caller's gradients do not belong to these batches
    for step, micro_batches in enumerate(batches, start=1):
        multiplier = schedule(step - 1)
        for group in optimizer.param_groups:
            group["lr"] = group[BASE_LR] * multiplier
        losses: list[Tensor] = []
        penalties: list[Tensor] = []
        with accumulating(model):
            for tokens in micro_batches:
                with autocast(precision, tokens.device):
                    loss, penalty = losses_of(model, tokens, rules.loss_terms, step)
                    objective = (loss if penalty is None else loss + penalty) / len(micro_batches)
                objective.backward()
                losses.append(loss.detach() / len(micro_batches))
                if penalty is not None:
                    penalties.append(penalty.detach() / len(micro_batches))
        after_backward()
        total = torch.stack(losses).sum()
        added = torch.stack(penalties).sum() if penalties else None
        gradients = Gradients(parameters)
        grad_norm = nan
        for rule in rules.gradient:
            measured = rule(step, gradients)
            grad_norm = measured if measured is not None and grad_norm is nan else grad_norm
        seen = total if added is None else total + added
        verdict = Verdict.APPLY if rules.gate is None else rules.gate(step, seen, grad_norm)
        if verdict is Verdict.APPLY:
            for rule in rules.update:
                rule.before_step(step, gradients)
            optimizer.step()
            for rule in rules.update:
                rule(step, parameters)
        optimizer.zero_grad(set_to_none=True)
        held_out = evaluation.loss() if evaluation is not None and step in evaluation.after else None
        yield StepRecord(step, multiplier, total, grad_norm, held_out, verdict, added)
        if verdict is Verdict.STOP:
            return


def autocast(precision: Literal["fp32", "bf16"], device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context of bf16 autocast; for fp32, a context that does nothing."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
