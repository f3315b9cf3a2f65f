"""The hooks of a watch on a model and on its optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from trimtab.watching import seam
from trimtab.watching.metric import Place
from trimtab.watching.padding import mask_argument
from trimtab.watching.subject import Subject, gradient_of

OnStep = Callable[[torch.optim.Optimizer], None]


def hook(
    subject: Subject, token: Tensor, number: int, places: Sequence[Place], *, attention: bool
) -> list[Callable[[], None]]:
    """Put the hooks of one watch into its model; returns the functions that take them out.

    Args:
        subject: the model and its points.
        token: of the watch, said to be changed by every operator in a compiled graph.
        number: of the watch among the observers.
        places: of tensors and gradients, in the order of the rows that hooks report; other points get no hook.
        attention: whether queries and keys are watched.
    """
    removers: list[Callable[[], None]] = []
    if attention:
        try:
            for index, (_, point) in enumerate(subject.attentions):
                removers.append(point.watch(partial(seam.attention_hook, token, number, index)))
        except BaseException:
            for remove in removers:
                remove()
            raise
    handles: list[Any] = [
        subject.model.register_forward_pre_hook(
            partial(seam.entering, token, number, mask_argument(subject.model)), with_kwargs=True
        ),
        subject.model.register_forward_hook(partial(seam.leaving, token, number)),
    ]
    rows = {place: row for row, place in enumerate(places)}
    for place, point in subject.points:
        numbers = (token, number, rows.get(place, -1), rows.get(gradient_of(place), -1))
        if numbers[2:] == (-1, -1):
            continue  # no meter looks at what passes here
        if point.side == "input":
            input_hook = partial(seam.input_hook, *numbers)
            handles.append(point.module.register_forward_pre_hook(input_hook, with_kwargs=True))
        else:
            handles.append(point.module.register_forward_hook(partial(seam.output_hook, *numbers)))
    return [*removers, *(handle.remove for handle in handles)]


def hook_step(optimizer: torch.optim.Optimizer, before: OnStep, after: OnStep) -> list[Any]:
    """Call ``before`` and ``after`` around each step of an optimizer; returns the handles of the hooks.

    Args:
        optimizer: the optimizer, which keeps the owner of both methods alive.
        before: called when the gradients exist.
        after: a bound method, called after all hooks of this optimizer and after rules that follow the step, such as
            the power iteration of ``sigma_reparam``: what it reads is what the next forward pass uses.
    """
    last = weakref.WeakMethod(after)

    def left(stepped: torch.optim.Optimizer, *_: Any) -> None:
        act = last()
        if act is not None and stepped is watched():
            act(stepped)

    watched = weakref.ref(optimizer)

    def entering(stepping: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            before(stepping)
            return None

        def followed() -> Any:
            loss = closure()  # the gradients exist only after it
            before(stepping)
            return loss

        return (args[:1], {**kwargs, "closure": followed})

    return [
        optimizer.register_step_pre_hook(entering),
        register_optimizer_step_post_hook(left),  # hooks of all optimizers run after those of a single one
    ]
