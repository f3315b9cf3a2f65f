"""The loss of a language model: cross-entropy of the next tokens, and terms that are added to it in training."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

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

    Without terms the cross-entropy is one fused operation. With terms it is the mean of the losses of the tokens: these
    also give log Z, the loss plus the logit of the target, at the cost of an addition.
    """
    logits = logits_of(model, tokens[:, :-1])
    targets = tokens[:, 1:]
    flat = logits.float().flatten(0, 1)
    if not terms:
        return F.cross_entropy(flat, targets.flatten()), None
    each = F.cross_entropy(flat, targets.flatten(), reduction="none")

    @functools.cache
    def log_z() -> Tensor:
        return (each + flat.gather(1, targets.flatten()[:, None])[:, 0]).view(targets.shape)

    return each.mean(), sum((term(step, logits, targets, log_z) for term in terms), each.new_zeros(()))


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
