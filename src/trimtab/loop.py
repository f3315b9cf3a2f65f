"""The training loop, readable top to bottom: one optimizer step a turn, one record a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from trimtab.intervention import RunningRule

MicroBatches = Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step did. Tensors are 0-dim and stay on their device until somebody reads them.

    Attributes:
        step: optimizer steps taken, from 1; the record of step 0 is the evaluation before training.
        loss: mean training loss of the step's tokens, before the update, in nats; nan for step 0.
        grad_norm: global L2 norm of the gradients before any rule; nan where no rule measures it.
        held_out_loss: loss on the held-out batch after the update, in nats; None where not evaluated.
    """

    step: int
    learning_rate: float
    loss: Tensor
    grad_norm: Tensor
    held_out_loss: Tensor | None = None


def train(
    model: nn.Module,
    batches: Iterable[MicroBatches],
    optimizer: torch.optim.Optimizer,
    *,
    learning_rate: Callable[[int], float],
    gradient_rules: Sequence[RunningRule] = (),
    after_backward: Callable[[], None] = lambda: None,
    evaluate: Callable[[], Tensor] | None = None,
    evaluate_after: Collection[int] = (),
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Iterator[StepRecord]:
    """Train a model that maps tokens (B, T) to logits (B, T, V), or to an object with ``logits``; one record per step.

    Args:
        model: called with tokens; its mode is set to training.
        optimizer: its LR is set at every step.
        batches: per step, one or more micro-batches of token ids (B, T + 1); their gradients are averaged.
        learning_rate: the LR of a step counted from 0.
        gradient_rules: applied in order between backward and the optimizer step.
        after_backward: called when the gradients of a step are complete, before any rule, such as a watch's
            ``see_gradients``.
        evaluate: gives the held-out loss.
        evaluate_after: steps after which it is called; 0 means before training.
        precision: of forward and backward; the held-out loss is always in fp32.
    """
    nan = torch.tensor(float("nan"))
    if evaluate is not None and 0 in evaluate_after:
        yield StepRecord(0, 0.0, nan, nan, evaluate())
    model.train()
    optimizer.zero_grad(set_to_none=True)  # what a caller left there is not of these batches
    for step, micro_batches in enumerate(batches, start=1):
        lr = learning_rate(step - 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses: list[Tensor] = []
        for tokens in micro_batches:
            with autocast(precision, tokens.device):
                loss = next_token_loss(model, tokens) / len(micro_batches)
            loss.backward()
            losses.append(loss.detach())
        after_backward()
        grad_norm = nan
        for rule in gradient_rules:
            measured = rule()
            grad_norm = measured if measured is not None and grad_norm is nan else grad_norm
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        held_out = evaluate() if evaluate is not None and step in evaluate_after else None
        yield StepRecord(step, lr, torch.stack(losses).sum(), grad_norm, held_out)


def token_losses(model: nn.Module, tokens: Int[Tensor, "B T_plus_1"]) -> Float[Tensor, "B T"]:
    """Cross-entropy of each next token, in nats; logits are taken to fp32 first. NaN in, NaN out."""
    output = model(tokens[:, :-1])
    logits = cast(Tensor, getattr(output, "logits", output))
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(
        len(tokens), -1
    )


def next_token_loss(model: nn.Module, tokens: Int[Tensor, "B T_plus_1"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of each next token, in nats; logits are taken to fp32 first. NaN in, NaN out."""
    output = model(tokens[:, :-1])
    logits = cast(Tensor, getattr(output, "logits", output))
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def held_out_loss(model: nn.Module, tokens: Int[Tensor, "B T_plus_1"], batch_size: int) -> Float[Tensor, ""]:
    """Loss on fixed held-out windows in fp32 and eval mode, in nats; the model's mode is restored."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        pieces = [next_token_loss(model, piece) * len(piece) for piece in tokens.split(batch_size)]
    model.train(was_training)
    return torch.stack(pieces).sum() / len(tokens)


def autocast(precision: Literal["fp32", "bf16"], device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bf16 autocast, or nothing."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
