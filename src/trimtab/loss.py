"""The loss of a language model: cross-entropy of the next tokens, and terms that are added to it in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from trimtab.host import evaluating
from trimtab.intervention import RunningLossTerm


def losses_of(
    model: nn.Module, tokens: Int[Tensor, "B T_plus_1"], terms: Sequence[RunningLossTerm], step: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None]:
    """Mean cross-entropy of the next tokens, in nats, and the sum of the loss terms; None without terms.

    Without terms the cross-entropy is one fused operation. With terms it is the mean of the losses of the tokens, which
    are computed together with log Z, so that both share one backward pass over the logits.
    """
    logits = logits_of(model, tokens[:, :-1])
    targets = tokens[:, 1:]
    flat = logits.float().flatten(0, 1)
    if not terms:
        return F.cross_entropy(flat, targets.flatten()), None
    each, log_z = cast("tuple[Tensor, Tensor]", _LossAndLogZ.apply(flat, targets.flatten())[:2])
    log_z = log_z.view(targets.shape)
    added = sum((term(step, logits, targets, lambda: log_z) for term in terms), each.new_zeros(()))
    return each.mean(), added


class _LossAndLogZ(torch.autograd.Function):
    """Cross-entropy and log Z of every row, with one pass over the gradient of the logits in place of two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(flat: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> tuple[Tensor, Tensor, Tensor]:
        log_probabilities = F.log_softmax(flat, dim=-1)
        each = -log_probabilities.gather(1, targets[:, None])[:, 0]
        return each, each + flat.gather(1, targets[:, None])[:, 0], log_probabilities

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.save_for_backward(output[2], inputs[1])
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        of_loss, of_log_z, _ = grads
        log_probabilities, targets = ctx.saved_tensors
        # In place: each further copy of the logits costs as much as the cross-entropy.
        grad = log_probabilities.exp().mul_((of_loss + of_log_z)[:, None])
        return grad.scatter_add_(1, targets[:, None], -of_loss[:, None]), None


def logits_of(model: nn.Module, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
    """The output of a model, or the ``logits`` of its output."""
    output = model(tokens)
    return cast(Tensor, getattr(output, "logits", output))


def token_losses(model: nn.Module, tokens: Int[Tensor, "B T_plus_1"]) -> Float[Tensor, "B T"]:
    """Cross-entropy of each next token, in nats, computed from logits in fp32. NaN logits give NaN losses."""
    logits = logits_of(model, tokens[:, :-1])
    losses = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(len(tokens), -1)


def next_token_loss(model: nn.Module, tokens: Int[Tensor, "B T_plus_1"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the next tokens, in nats, computed from logits in fp32. NaN logits give a NaN loss."""
    return losses_of(model, tokens, (), 0)[0]


def held_out_loss(model: nn.Module, tokens: Int[Tensor, "B T_plus_1"], batch_size: int) -> Float[Tensor, ""]:
    """Loss on fixed held-out windows in fp32 and eval mode, in nats; the mode of every submodule is restored."""
    with evaluating(model), torch.no_grad():
        pieces = [next_token_loss(model, piece) * len(piece) for piece in tokens.split(batch_size)]
    return torch.stack(pieces).sum() / len(tokens)
