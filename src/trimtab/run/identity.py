"""The name of a run: a hash of its settings, of the code that determines its numbers, and of its data.

Code is hashed as syntax without docstrings and comments, so prose can be mended without training anything again.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from types import CodeType, ModuleType
from typing import Any

import torch

from trimtab.config import canonical
from trimtab.run.spec import RunSpec

# What every run passes through. An intervention and a data source are added by the run that uses them.
CORE = (
    "trimtab.host",
    "trimtab.intervention",
    "trimtab.method",
    "trimtab.models.gpt",
    "trimtab.hosts.gpt",
    "trimtab.optim",
    "trimtab.train",
    "trimtab.data.source",
    "trimtab.data.batches",
    "trimtab.data.tokenizer",
    "trimtab.run.spec",
    "trimtab.run.execute",
)


def run_id(spec: RunSpec, data_fingerprint: str) -> str:
    """20 hexadecimal digits that name a run's folder; equal runs have equal names."""
    modules = {*CORE, type(spec.protocol.data).__module__}
    modules |= {type(intervention).__module__ for intervention in spec.interventions}
    facts = {
        "spec": spec.table(),
        "data": data_fingerprint,
        "torch": torch.__version__.split("+")[0],
        "code": {name: _module_hash(name) for name in sorted(modules)},
        "user_code": [code_hash(thing) for thing in (spec.build_model, spec.build_optimizer) if thing is not None],
    }
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:20]


def code_hash(function: Callable[..., Any]) -> str:
    """Hash of a user's function or class, and of everything of the same module that it uses by name.

    Raises:
        ValueError: if the source cannot be found, as for a function typed at a prompt.
    """
    module = sys.modules[function.__module__]
    seen: dict[str, str] = {}
    waiting: list[Any] = [function]
    while waiting:
        thing = waiting.pop()
        name = thing.__qualname__  # not its module: a script is __main__ here and __mp_main__ in a worker
        if name in seen:
            continue
        try:
            seen[name] = _normalised(textwrap.dedent(inspect.getsource(thing)))
        except (OSError, TypeError) as error:
            raise ValueError(
                f"{name}: its source cannot be found, so its runs have no identity; define it in a file"
            ) from error
        waiting += _named_in_module(thing, module)
    return hashlib.sha256(canonical(seen).encode()).hexdigest()


def _named_in_module(thing: Any, module: ModuleType) -> Iterable[Any]:
    functions = [thing] if inspect.isfunction(thing) else [v for v in vars(thing).values() if inspect.isfunction(v)]
    bases = [base for base in getattr(thing, "__mro__", ())[1:] if base.__module__ == module.__name__]
    names = {name for function in functions for code in _nested(function.__code__) for name in code.co_names}
    found = (vars(module).get(name) for name in sorted(names))
    return bases + [
        v for v in found if inspect.isfunction(v) or (inspect.isclass(v) and v.__module__ == module.__name__)
    ]


def _nested(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


@cache
def _module_hash(name: str) -> str:
    return hashlib.sha256(_normalised(inspect.getsource(importlib.import_module(name))).encode()).hexdigest()


def _normalised(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    return ast.dump(tree)
