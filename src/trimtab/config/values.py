"""Plain values that TOML, UTF-8 and Python's recursion can hold, and the error for all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from typing_extensions import override

from trimtab.config.text import dotted, printable, shortened, shown

Raw = dict[str, Any]
DEEPEST = 64  # levels; a study file needs about 6, and Python's own recursion ends near 1,000
BITS = 64  # of a whole number, as TOML has it


class ConfigError(ValueError):
    """A config that cannot be used, in one printable line: file, path of the key, what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Settings(Mapping[str, Any]):
    """An immutable table of plain values, for settings that another library defines. Equal tables have equal hashes."""

    def __init__(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        self._values = {**(values or {}), **more}

    @override
    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    @override
    def __len__(self) -> int:
        return len(self._values)

    @override
    def __hash__(self) -> int:
        return hash(repr(sorted(self._values.items())))

    @override
    def __repr__(self) -> str:
        return f"Settings({self._values!r})"


def refuse_unusable(value: object, where: str, at: Sequence[str | int] = ()) -> None:
    """Check the plain value found in ``where`` at the path ``at``, with everything inside it.

    Raises:
        ConfigError: if tables and lists are nested more than 64 deep, a whole number has more than 64 bits, or a text
            is not valid Unicode.
    """
    # A stack in place of recursion: the value may be nested more deeply than Python can recurse.
    waiting: list[tuple[object, tuple[str | int, ...]]] = [(value, tuple(at))]
    while waiting:
        inner, path = waiting.pop()
        problem = _problem(inner, path)
        if problem is not None:
            raise ConfigError(": ".join(part for part in (where, shortened(dotted(path)), problem) if part))
        if isinstance(inner, dict):
            waiting += [(item, (*path, str(key))) for key, item in cast("dict[Any, object]", inner).items()]
        elif isinstance(inner, list | tuple):
            waiting += [(item, (*path, index)) for index, item in enumerate(cast("Sequence[object]", inner))]


def _problem(value: object, path: Sequence[str | int]) -> str | None:
    if len(path) > DEEPEST:
        return f"nested too deeply; at most {DEEPEST} levels are allowed"
    if path and isinstance(path[-1], str) and without_surrogates(path[-1]) != path[-1]:
        return "the key is not valid Unicode; write it in UTF-8"
    if isinstance(value, str) and without_surrogates(value) != value:
        return f"{shown(value)} is not valid Unicode; write it in UTF-8"
    if isinstance(value, int) and not -(1 << BITS - 1) <= value < 1 << BITS - 1:
        return (
            f"the whole number is too large: it does not fit {BITS} bits; use a smaller number, or a float such as 1e20"
        )
    return None


def without_surrogates(text: str) -> str:
    """Text without lone surrogates, which no encoding holds; Python makes them of command line bytes not in UTF-8."""
    return text.encode(errors="ignore").decode()
