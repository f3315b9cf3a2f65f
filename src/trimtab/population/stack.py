"""A population: models of one structure with their parameters stacked, called together.

The models stay whole: their parameters and buffers become views into the stacks, so that an evaluation, a rule, or a
state of one model works on it as before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vmap
from typing_extensions import override

from trimtab.loss import losses_of, token_losses
from trimtab.population.attention import FoldedAttention
from trimtab.spectral import SpectralRule


class NotStackableError(RuntimeError):
    """These models cannot be trained as one stack; the message gives the reason."""


@contextmanager
def refusing() -> Generator[None]:
    """A block in which an error of ``vmap``, or of its gradient, is a refusal; exhausted memory is not."""
    try:
        yield
    except RuntimeError as error:  # also NotImplementedError
        if any(words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")):
            raise
        raise NotStackableError(" ".join(str(error).split())[:300]) from error


class Stack:
    """K models of one structure.

    Args:
        models: the models. Their parameters and buffers become views.
        terms: loss terms of a model, without state.

    Attributes:
        parameters: by name, each (K, ...), leaves that require gradients.
        buffers: by name, each (K, ...).

    Raises:
        NotStackableError: if the models differ in structure, or a parameter is of a kind that cannot be stacked.
    """

    def __init__(self, models: Sequence[nn.Module], terms: Sequence[Any] = ()) -> None:
        self.models = list(models)
        self.terms = list(terms)
        shapes = [{n: (p.shape, p.dtype) for n, p in model.named_parameters()} for model in models]
        if any(shape != shapes[0] for shape in shapes):
            raise NotStackableError("the models of a population differ in the names or shapes of their parameters")
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self._stack()
        for model in models:
            for rule in _spectral(model):
                rule.is_stepped_outside()

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with these models only, between two steps; ``parameters`` and ``buffers`` stay the same dictionaries.

        The others keep their values, in the memory of the former stack.
        """
        self.models = [self.models[index] for index in indices]
        self._stack()

    @torch.no_grad()
    def _stack(self) -> None:
        for name, parameter in self.models[0].named_parameters():
            stacked = torch.stack([model.get_parameter(name).detach() for model in self.models])
            self.parameters[name] = stacked.requires_grad_(parameter.requires_grad)
            for index, model in enumerate(self.models):
                model.get_parameter(name).data = stacked.detach()[index]
        for name, _ in self.models[0].named_buffers():
            stacked = torch.stack([model.get_buffer(name) for model in self.models])
            self.buffers[name] = stacked
            for index, model in enumerate(self.models):
                model.get_buffer(name).data = stacked[index]

    @property
    def trained(self) -> dict[str, Tensor]:
        """The stacked parameters that require gradients."""
        return {name: value for name, value in self.parameters.items() if value.requires_grad}

    def losses(
        self, tokens: Int[Tensor, "K B T_plus_1"], step: int, precision: AbstractContextManager[object] | None = None
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"] | None]:
        """Mean cross-entropy of each model on its own tokens, in nats, and the sum of the loss terms.

        Raises:
            NotStackableError: if the code of the model cannot be vectorised.
        """

        def one(tokens_BT: Tensor) -> tuple[Tensor, ...]:
            loss, penalty = losses_of(self.models[0], tokens_BT, self.terms, step)
            return (loss,) if penalty is None else (loss, penalty)

        with precision or nullcontext():
            found = self._call(one, tokens, 0)
        return found[0], (found[1] if len(found) > 1 else None)

    @torch.no_grad()
    def held_out_losses(self, tokens: Int[Tensor, "B T_plus_1"], batch_size: int) -> Float[Tensor, " K"]:
        """The mean loss of every model on the same windows in fp32 and eval mode, in nats."""
        training = self.models[0].training
        self.models[0].eval()
        try:
            pieces = tokens.split(batch_size)
            sums = [self._call(lambda x: (token_losses(self.models[0], x).sum((0, 1)),), x, None)[0] for x in pieces]
            return torch.stack(sums).sum(0) / (tokens.shape[0] * (tokens.shape[1] - 1))
        finally:
            self.models[0].train(training)

    def share_gradients(self) -> None:
        """Give every model the gradients of its own parameters, as views."""
        for index, model in enumerate(self.models):
            for name, parameter in model.named_parameters():
                grad = self.parameters[name].grad
                parameter.grad = None if grad is None else grad[index]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for stacked in self.parameters.values():
            stacked.grad = None
        for model in self.models:
            for parameter in model.parameters():
                parameter.grad = None

    def after_step(self) -> None:
        """Advance the state of weight rules that follows an optimizer step."""
        for model in self.models:
            for rule in _spectral(model):
                if rule.stored is not None:
                    rule.step(rule.stored)

    def _call(
        self, function: Callable[[Tensor], tuple[Tensor, ...]], tokens: Tensor, dim: int | None
    ) -> tuple[Tensor, ...]:
        call = _Call(self.models[0], function)

        def one(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
            named = {f"model.{name}": value for name, value in (*parameters.items(), *buffers.items())}
            return cast("tuple[Tensor, ...]", functional_call(call, named, (x,)))

        with refusing(), FoldedAttention():
            return vmap(one, in_dims=(0, 0, dim), randomness="error")(self.parameters, self.buffers, tokens)


class _Call(nn.Module):
    """A function of a model as a module, so that its parameters can be replaced for one call."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.function(x)


def _spectral(model: nn.Module) -> list[SpectralRule]:
    return [module for module in model.modules() if isinstance(module, SpectralRule)]
