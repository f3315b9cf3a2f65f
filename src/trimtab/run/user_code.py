"""The identity of user code: functions and classes by their source text, installed packages by version.

The source text is normalised: docstrings, comments and layout are removed, so that a change of prose does not change
the identity. torch, numpy and trimtab belong to the environment: they are recorded with a run and are not part of its
identity.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import importlib.metadata
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from trimtab.config import canonical

ENVIRONMENT = frozenset({"torch", "numpy", "trimtab"})


@dataclass(frozen=True, slots=True)
class CodeIdentity:
    """The identity of a function or class.

    Attributes:
        text: hash of the user's source text that it consists of; its qualified name if it belongs to an installed
            distribution.
        distributions: versions of the installed distributions that it uses, by name.
    """

    text: str
    distributions: Mapping[str, str] = field(default_factory=dict[str, str])

    def table(self) -> dict[str, object]:
        """As plain values."""
        return {"text": self.text, "distributions": dict(self.distributions)}


def code_identity(thing: Callable[..., Any]) -> CodeIdentity:
    """The identity of a function or class, including all code and plain constants that it refers to by name.

    Raises:
        ValueError: if the source cannot be found, as for a function typed at a prompt, or if a closure holds an object
            that has no stable value.
    """
    if not (inspect.isfunction(thing) or inspect.isclass(thing)):
        raise ValueError(
            f"{thing!r} is neither a function nor a class, so its runs have no identity; wrap it in a function"
        )
    distributions: set[str] = set()
    installed = _distribution_of(_module_of(thing))
    if installed:
        return CodeIdentity(f"{thing.__module__}.{thing.__qualname__}", _versions({installed}))
    seen: dict[str, object] = {}
    waiting: list[Any] = [thing]
    while waiting:
        current = waiting.pop()
        name = current.__qualname__  # without its module: a script is __main__ here and __mp_main__ in a worker
        if name in seen:
            continue
        try:
            source = _source_of(current)
        except (OSError, TypeError) as error:
            raise ValueError(
                f"{name}: its source cannot be found, so its runs have no identity; define it by def or class in a file"
            ) from error
        uses = _uses_of(current)
        seen[name] = [source, uses.constants]
        waiting += uses.code
        distributions |= uses.distributions
    return CodeIdentity(hashlib.sha256(canonical(seen).encode()).hexdigest(), _versions(distributions))


def normalised(source: str) -> str:
    """Python source without docstrings, comments and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    # ast.unparse instead of ast.dump: the format of a dump differs between versions of Python.
    return ast.unparse(tree)


def _source_of(thing: Any) -> str:
    text = textwrap.dedent(inspect.getsource(thing))
    try:
        return normalised(text)
    except (
        SyntaxError
    ):  # a lambda inside a call: its source line is not valid Python by itself, so its bytecode is used
        code = thing.__code__
        return repr((code.co_code.hex(), code.co_names, [c for c in code.co_consts if not isinstance(c, CodeType)]))


@dataclass(slots=True)
class _Uses:
    """The objects that a function or class refers to: constants by name, user code, installed distributions."""

    constants: dict[str, object] = field(default_factory=dict[str, object])
    code: list[Any] = field(default_factory=list[Any])
    distributions: set[str] = field(default_factory=set[str])


def _uses_of(thing: Any) -> _Uses:
    # Generated methods, such as those of dataclass, are not in the file; the source of their class determines them.
    file = inspect.getsourcefile(thing)
    methods = (getattr(v, "__func__", getattr(v, "fget", v)) for v in vars(thing).values())
    written = (m for m in methods if inspect.isfunction(m) and m.__code__.co_filename == file)
    functions = [thing] if inspect.isfunction(thing) else list(written)
    uses = _Uses()
    for base in getattr(thing, "__mro__", ())[1:]:
        if _is_users(base):
            uses.code.append(base)
        else:
            _add_distribution(uses, base)
    for function in functions:
        _add_uses(uses, function)
    return uses


def _add_uses(uses: _Uses, function: FunctionType) -> None:
    codes = list(_nested(function.__code__))
    names = sorted({name for nested in codes for name in nested.co_names})
    used = {name: function.__globals__[name] for name in names if name in function.__globals__}
    modules = [value for value in used.values() if inspect.ismodule(value) and _is_users(value)]
    used |= {name: getattr(module, name) for module in modules for name in names if hasattr(module, name)}
    for imported in _imported_inside(function, codes):
        module = sys.modules.get(imported)
        if module is not None and _is_users(module):
            used |= {name: getattr(module, name) for name in names if hasattr(module, name)}
        uses.distributions |= {name for name in [_distribution_of(imported)] if name}
    for name, value in {**inspect.getclosurevars(function).nonlocals, **_defaults(function)}.items():
        if not _is_users(value):
            uses.constants[f"{function.__qualname__}.{name}"] = _plain(value, f"{function.__qualname__}: {name}")
        used[name] = value
    for name, value in used.items():
        if _is_users(value):
            if not inspect.ismodule(value):
                uses.code.append(value)
        elif isinstance(value, bool | int | float | str | bytes | tuple | frozenset | list | dict):
            uses.constants.setdefault(name, _plain(value, name))
        else:
            _add_distribution(uses, value)


def _imported_inside(function: FunctionType, codes: Iterable[CodeType]) -> list[str]:
    """Names of the modules that a function imports in its body; relative imports are resolved."""
    package = str(function.__globals__.get("__package__") or "")
    names: list[str] = []
    for code in codes:
        before: list[Any] = []
        for instruction in dis.get_instructions(code):
            if instruction.opname == "IMPORT_NAME":
                level = next((value for value in before[-2:] if isinstance(value, int)), 0)
                named = str(instruction.argval)
                if level:
                    parents = package.split(".")[: len(package.split(".")) - (level - 1)]
                    named = ".".join([*parents, named] if named else parents)
                names.append(named)
            before.append(instruction.argval)
    return names


def _add_distribution(uses: _Uses, value: object) -> None:
    name = _distribution_of(_module_of(value))
    if name:
        uses.distributions.add(name)


def _module_of(value: object) -> str:
    if inspect.ismodule(value):
        return value.__name__
    module = getattr(value, "__module__", None)
    return module if isinstance(module, str) else type(value).__module__


def _distribution_of(module: str) -> str:
    """The installed distribution of a module; "" for a module of the user, of Python or of the environment."""
    top = module.split(".")[0]
    loaded = sys.modules.get(top)
    file = getattr(loaded, "__file__", None)
    if top in ENVIRONMENT or top in sys.stdlib_module_names:
        return ""
    names = _distributions().get(top, ())
    if file is not None and not any(Path(file).resolve().is_relative_to(folder) for folder in _installed()):
        return ""
    return "" if not names or names[0].lower() in ENVIRONMENT else names[0]


def _versions(names: Iterable[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in sorted(names)}


@cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


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
    """Whether this is a function, class or module of the user: not built in, not installed, not part of trimtab."""
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
