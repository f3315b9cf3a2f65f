"""Which attention function the code of a module reaches, found by reading the code and not by running it.

The names that a ``forward`` uses are looked up where Python would look them up, and so are those of the functions that
it calls, outside of torch. So it does not matter how a function was imported.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

SDPA = "scaled_dot_product_attention"
FLEX = "flex_attention"
REGISTRY = "ALL_ATTENTION_FUNCTIONS"
UNREADABLE = ("flash_attn_func", "flash_attn_varlen_func", "varlen_attn", "memory_efficient_attention")
"""Functions whose attention is not read: sequences of unequal length in one tensor, or kernels of other packages."""

PACKAGES = ("torch", "flash_attn", "xformers")
DEEPEST = 6
Hit = tuple[str, dict[str, Any], str]
"""An attention function, and the namespace and the name under which it was found."""


def reached(module: nn.Module) -> list[Hit]:
    """The attention functions that the ``forward`` of a module reaches without another module."""
    forward = _plain(module.forward)
    if not isinstance(forward, types.FunctionType) or forward.__module__.split(".")[0] == "torch":
        return []
    found: dict[tuple[str, int, str], Hit] = {}
    seen: set[int] = set()
    for hit in _hits(forward, type(module), seen, 0):
        found[hit[0], id(hit[1]), hit[2]] = hit
    return list(found.values())


def _hits(function: types.FunctionType, owner: type, seen: set[int], depth: int) -> Iterator[Hit]:
    if id(function) in seen or depth > DEEPEST:
        return
    seen.add(id(function))
    names = set(_names(function.__code__))
    for name in names:
        for space in (function.__globals__, _closure(function)):
            if name in space:
                yield from _of_value(space, name, names, owner, seen, depth)
        method = inspect.getattr_static(owner, name, None)
        if isinstance(method, types.FunctionType | staticmethod | classmethod):
            plain = _plain(method)
            if isinstance(plain, types.FunctionType) and not _is_of_torch(plain):
                yield from _hits(plain, owner, seen, depth + 1)


def _of_value(
    space: dict[str, Any], name: str, names: set[str], owner: type, seen: set[int], depth: int
) -> Iterator[Hit]:
    value = space[name]
    kind = _kind(name, value)
    if kind is not None:
        yield kind, space, name
        return
    plain = _plain(value)
    if isinstance(plain, types.FunctionType):
        if not _is_of_torch(plain):
            yield from _hits(plain, owner, seen, depth + 1)
    elif isinstance(value, types.ModuleType | types.SimpleNamespace) and depth <= DEEPEST:
        inner = vars(value)
        for attribute in names & inner.keys():
            if attribute != name:
                yield from _of_value(inner, attribute, names, owner, seen, depth + 1)


def _kind(name: str, value: Any) -> str | None:
    if value is F.scaled_dot_product_attention:
        return SDPA
    original = getattr(value, "_torchdynamo_orig_callable", value)
    if callable(value) and getattr(original, "__name__", "") == FLEX:
        return FLEX
    if name == REGISTRY:
        return REGISTRY
    package = (getattr(_plain(value), "__module__", None) or "").split(".")[0]
    return name if name in UNREADABLE and package in PACKAGES else None


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _closure(function: types.FunctionType) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    return {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _plain(value: Any) -> Any:
    while True:
        if isinstance(value, partial):
            value = value.func
        elif isinstance(value, staticmethod | classmethod | types.MethodType):
            value = value.__func__
        elif isinstance(value, types.FunctionType) and "__wrapped__" in vars(value):
            value = vars(value)["__wrapped__"]
        else:
            return value


def _is_of_torch(function: types.FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] == "torch"
