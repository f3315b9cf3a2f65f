"""Where a watch meets the model: hooks in eager mode, and custom operators in a compiled graph.

A compiled graph must not change with the cadence and must not depend on Python state. So in a graph a hook leaves one
call of an opaque operator. The body of the operator runs outside the graph on every step, and its watch decides
whether the tensor is read.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch._library.effects import EffectType
from typing_extensions import override

from trimtab.watching.padding import MaskArgument


class Observer(Protocol):
    """What hooks and operators report to: a watch."""

    traced: bool

    def enter(self, module: nn.Module | None, grad: bool, mask: Tensor | None) -> None: ...

    def leave(self) -> None: ...

    def see(self, row: int, x: Tensor) -> None: ...

    def see_gradient(self, row: int, x: Tensor) -> None: ...

    def wants_gradient(self, row: int) -> bool: ...

    def keep(self, handle: Any) -> None: ...

    def see_attention(self, index: int, q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> None: ...


OBSERVERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
ENTER, LEAVE = 1, 0


def _observer(number: int) -> Observer | None:
    observer = cast("Observer | None", OBSERVERS.get(number))
    if observer is not None:
        observer.traced = True
    return observer


# The operators declare that they change the token, so that a compiler keeps every call and their order. An operator
# that runs Python cannot be part of a CUDA graph. No layout is required: requiring one could change the kernels around.
_TAGS = tuple(getattr(torch.Tag, name) for name in ("cudagraph_unsafe", "flexible_layout") if hasattr(torch.Tag, name))


@torch.library.custom_op("trimtab::phase", mutates_args={"token"}, tags=_TAGS)
def _phase(token: Tensor, mask: Tensor | None, number: int, entering: int, grad: bool) -> None:
    observer = _observer(number)
    if observer is not None:
        if entering == ENTER:
            observer.enter(None, grad, mask)
        else:
            observer.leave()


@torch.library.custom_op("trimtab::observe", mutates_args={"token"}, tags=_TAGS)
def _observe(token: Tensor, x: Tensor, number: int, row: int) -> None:
    observer = _observer(number)
    if observer is not None:
        observer.see(row, x)


@torch.library.custom_op("trimtab::observe_gradient", mutates_args=(), tags=_TAGS)
def _observe_gradient(x: Tensor, number: int, row: int) -> None:
    observer = _observer(number)
    if observer is not None:
        observer.see_gradient(row, x)


@torch.library.custom_op("trimtab::observe_attention", mutates_args={"token"}, tags=_TAGS)
def _observe_attention(
    token: Tensor, q: Tensor, k: Tensor, mask: Tensor | None, scale: float, number: int, index: int
) -> None:
    observer = _observer(number)
    if observer is not None:
        observer.see_attention(index, q, k, mask, scale)


_observe_gradient.register_effect(EffectType.ORDERED)
for _op in (_phase, _observe, _observe_gradient, _observe_attention):
    _op.register_fake(lambda *_: None)


class _GradientEye(torch.autograd.Function):
    """The identity, whose backward reports the gradient; for graphs, where a tensor cannot carry a hook."""

    @override
    @staticmethod
    def forward(ctx: Any, x: Tensor, number: int, row: int) -> Tensor:
        ctx.number = number
        ctx.row = row
        return x.view_as(x)

    @override
    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        torch.ops.trimtab.observe_gradient(gradients[0], ctx.number, ctx.row)
        return gradients[0], None, None


def entering(
    token: Tensor, number: int, argument: MaskArgument | None, module: nn.Module, args: Any, kwargs: Any
) -> None:
    """Pre-hook of the watched module; ``argument`` is the one that tells what is padding."""
    mask = None if argument is None else argument.find(args, kwargs)
    if torch.compiler.is_compiling():
        torch.ops.trimtab.phase(token, _copy(mask), number, ENTER, torch.is_grad_enabled())
    elif (observer := OBSERVERS.get(number)) is not None:
        observer.enter(module, torch.is_grad_enabled(), mask)


def leaving(token: Tensor, number: int, module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook of the watched module."""
    if torch.compiler.is_compiling():
        torch.ops.trimtab.phase(token, None, number, LEAVE, True)
    elif (observer := OBSERVERS.get(number)) is not None:
        observer.leave()


def input_hook(token: Tensor, number: int, row: int, gradient_row: int, _: nn.Module, args: Any, kwargs: Any) -> Any:
    """Pre-hook that reports the first tensor that a module is given; it changes arguments only inside a graph."""
    for index, value in enumerate(args):
        if isinstance(value, Tensor):
            shown = _show(value, token, number, row, gradient_row)
            return None if shown is value else ((*args[:index], shown, *args[index + 1 :]), kwargs)
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            shown = _show(value, token, number, row, gradient_row)
            return None if shown is value else (args, {**kwargs, name: shown})
    return None


def output_hook(token: Tensor, number: int, row: int, gradient_row: int, _: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook that reports the first tensor that a module returns; it changes the output only inside a graph."""
    if isinstance(output, Tensor):
        shown = _show(output, token, number, row, gradient_row)
        return None if shown is output else shown
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        shown = _show(output[0], token, number, row, gradient_row)
        return None if shown is output[0] else (shown, *output[1:])
    return None


def attention_hook(
    token: Tensor, number: int, index: int, q: Tensor, k: Tensor, mask: Tensor | None, scale: float
) -> None:
    """Watcher of one attention layer; see ``AttentionWatcher``."""
    if torch.compiler.is_compiling():
        torch.ops.trimtab.observe_attention(token, q.detach(), k.detach(), _copy(mask), scale, number, index)
    elif (observer := OBSERVERS.get(number)) is not None:
        observer.see_attention(index, q.detach(), k.detach(), mask, scale)


def _copy(mask: Tensor | None) -> Tensor | None:
    # A mask that an operator reads directly is built differently, which changes the last bits of attention.
    return None if mask is None else mask.detach().clone()


def _show(x: Tensor, token: Tensor, number: int, row: int, gradient_row: int) -> Tensor:
    if not x.is_floating_point():
        return x
    compiling = torch.compiler.is_compiling()
    if compiling:
        torch.ops.trimtab.observe(token, x.detach(), number, row)
        return cast(Tensor, _GradientEye.apply(x, number, gradient_row)) if gradient_row >= 0 else x
    observer = cast("Observer | None", OBSERVERS.get(number))
    if observer is not None:
        observer.see(row, x.detach())
        if gradient_row >= 0 and x.requires_grad and observer.wants_gradient(gradient_row):
            # A tensor hook and not an autograd function: the model may change the tensor in place afterwards.
            handle = x.register_hook(_GradientHook(number, gradient_row))
            if x.is_leaf:  # the hook would outlive the pass
                observer.keep(handle)
    return x


class _GradientHook:
    """A tensor hook that can be copied and pickled with its model."""

    def __init__(self, number: int, row: int) -> None:
        self.number = number
        self.row = row

    def __call__(self, gradient: Tensor) -> None:
        observer = cast("Observer | None", OBSERVERS.get(self.number))
        if observer is not None:
            observer.see_gradient(self.row, gradient)
