"""The name of a run: a hash of its settings, of the code that determines its numbers, and of its data.

Code is hashed as syntax without docstrings and comments, so prose can be mended without training anything again.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from pkgutil import iter_modules
from types import CodeType, FunctionType
from typing import Any

import torch

from trimtab import probes, watching
from trimtab.config import canonical
from trimtab.run.spec import RunSpec

# What every run passes through. An intervention and a data source are added by the run that uses them.
CORE = (
    "trimtab.host",
    "trimtab.change",
    "trimtab.intervention",
    "trimtab.method",
    "trimtab.models.gpt",
    "trimtab.hosts.gpt",
    "trimtab.hosts.foreign",
    "trimtab.hosts.attention_seam",
    "trimtab.hosts.decoder",
    "trimtab.hosts.hugging_face",
    "trimtab.hosts.llama_like",
    "trimtab.hosts.gpt2",
    "trimtab.hosts.gpt_neox",
    "trimtab.hosts.nanogpt_like",
    "trimtab.optim",
    "trimtab.loop",
    "trimtab.data.source",
    "trimtab.data.batches",
    "trimtab.data.tokenizer",
    "trimtab.run.spec",
    "trimtab.run.execute",
    "trimtab.run.facts",
    "trimtab.run.texts",
    "trimtab.run.recordings",
)


def run_id(spec: RunSpec, data_fingerprint: str) -> str:
    """20 hexadecimal digits that name a run's folder; equal runs have equal names.

    Raises:
        ValueError: if the user's own code has no source or holds what has no stable value.
    """
    parts = [type(spec.protocol.data), *(type(intervention) for intervention in spec.interventions)]
    facts = {
        "spec": spec.table(),
        "data": data_fingerprint,
        "torch": torch.__version__.split("+")[0],
        "code": {name: _module_hash(name) for name in (*CORE, *_measuring(spec))},
        "parts": {part.slug(): _part_hash(part) for part in parts},
        "user_code": [code_hash(thing) for thing in (spec.build_model, spec.build_optimizer) if thing is not None],
    }
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:20]


def _measuring(spec: RunSpec) -> list[str]:
    """The modules that determine the readings of a watched run; none of an unwatched one."""
    if spec.protocol.probes.probes() is None:
        return []
    rooms = (probes, watching)
    return [
        "trimtab.probe",
        *sorted(f"{room.__name__}.{one.name}" for room in rooms for one in iter_modules(room.__path__)),
    ]


def _part_hash(part: type[Any]) -> str:
    ours = part.__module__.startswith("trimtab.")
    return _module_hash(part.__module__) if ours else code_hash(part)


def code_hash(thing: Callable[..., Any]) -> str:
    """Hash of a user's function or class, and of all user code and plain constants that it uses by name.

    Raises:
        ValueError: if the source cannot be found, as for a function typed at a prompt, or a closure holds what has no
            stable value.
    """
    if not (inspect.isfunction(thing) or inspect.isclass(thing)):
        raise ValueError(f"{thing!r} is neither a function nor a class, so its runs have no identity; wrap it in one")
    seen: dict[str, object] = {}
    waiting: list[Any] = [thing]
    while waiting:
        one = waiting.pop()
        name = one.__qualname__  # not its module: a script is __main__ here and __mp_main__ in a worker
        if name in seen:
            continue
        try:
            source = _source_of(one)
        except (OSError, TypeError) as error:
            raise ValueError(
                f"{name}: its source cannot be found, so its runs have no identity; define it by def or class in a file"
            ) from error
        constants, code = _used_by(one)
        seen[name] = [source, constants]
        waiting += code
    return hashlib.sha256(canonical(seen).encode()).hexdigest()


def _source_of(thing: Any) -> str:
    text = textwrap.dedent(inspect.getsource(thing))
    try:
        return _normalised(text)
    except SyntaxError:  # a lambda inside a call: its line by itself is no Python, but its bytecode says what it does
        code = thing.__code__
        return repr((code.co_code.hex(), code.co_names, [c for c in code.co_consts if not isinstance(c, CodeType)]))


def _used_by(thing: Any) -> tuple[dict[str, object], list[Any]]:
    """Constants and user code that a function or class refers to."""
    # Methods that dataclass and the like make are not in the file; their class's source says it all.
    file = inspect.getsourcefile(thing)
    methods = (getattr(v, "__func__", getattr(v, "fget", v)) for v in vars(thing).values())
    own = (m for m in methods if inspect.isfunction(m) and m.__code__.co_filename == file)
    functions = [thing] if inspect.isfunction(thing) else list(own)
    code: list[Any] = [base for base in getattr(thing, "__mro__", ())[1:] if _is_users(base)]
    constants: dict[str, object] = {}
    for function in functions:
        names = sorted({name for nested in _nested(function.__code__) for name in nested.co_names})
        found = {name: function.__globals__[name] for name in names if name in function.__globals__}
        modules = [value for value in found.values() if inspect.ismodule(value) and _is_users(value)]
        found |= {name: getattr(module, name) for module in modules for name in names if hasattr(module, name)}
        for name, value in {**inspect.getclosurevars(function).nonlocals, **_defaults(function)}.items():
            if not _is_users(value):
                constants[f"{function.__qualname__}.{name}"] = _plain(value, f"{function.__qualname__}: {name}")
            found[name] = value
        for name, value in found.items():
            if _is_users(value) and not inspect.ismodule(value):
                code.append(value)
            elif isinstance(value, bool | int | float | str | bytes | tuple | frozenset | list | dict):
                constants.setdefault(name, _plain(value, name))
    return constants, code


def _defaults(function: FunctionType) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _plain(value: object, where: str) -> str:
    if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
    try:
        return canonical(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} holds a {type(value).__name__}, which has no stable value, so its runs have no identity; "
            "use plain numbers and text"
        ) from error


def _is_users(thing: object) -> bool:
    """Whether this is a function, class or module of the user's: not built in, not installed, not ours."""
    if not (inspect.isfunction(thing) or inspect.isclass(thing) or inspect.ismodule(thing)):
        return False
    module = thing if inspect.ismodule(thing) else sys.modules.get(thing.__module__)
    file = getattr(module, "__file__", None)
    if file is None or getattr(module, "__name__", "").split(".")[0] == "trimtab":
        return False
    path = Path(file).resolve()
    return not any(path.is_relative_to(folder) for folder in _installed())


@cache
def _installed() -> tuple[Path, ...]:
    return tuple({Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


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
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    # Unparsed, not dumped: the form of a dump changes from one Python to the next.
    return ast.unparse(tree)
