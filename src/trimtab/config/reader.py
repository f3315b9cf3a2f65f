"""From plain tables to frozen dataclasses. Reading is strict: an error names the bad key and what is expected."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import cattrs
from cattrs import AttributeValidationNote, IterableValidationNote
from cattrs.errors import BaseValidationError, ForbiddenExtraKeysError

from trimtab.config.text import dotted, shown, unknown
from trimtab.config.values import ConfigError, Raw, Settings, refuse_unusable

T = TypeVar("T")


class Reader:
    """Turns plain tables into dataclasses, with hooks for the types that have a short form in TOML."""

    def __init__(self) -> None:
        self.converter = cattrs.Converter(forbid_extra_keys=True)
        hooks: list[tuple[type, Callable[[Any, Any], Any]]] = [
            (bool, _bool),
            (int, _int),
            (float, _float),
            (str, _str),
            (Settings, _settings),
        ]
        for kind, hook in hooks:
            self.converter.register_structure_hook(kind, hook)
        self.converter.register_structure_hook_factory(_is_variadic_tuple, self._tuple_hook)
        self.converter.register_structure_hook_factory(_is_literal, _literal_hook)

    def accept_tagged(self, kind: type[T], choices: Callable[[], Mapping[str, type[T]]]) -> None:
        """Read a type from a table of one key, the slug of a subclass: ``{ soft_cap = { cap = 30 } }``."""

        def read(raw: Any, _kind: Any) -> T:
            known = choices()
            if not isinstance(raw, dict) or len(cast(Raw, raw)) != 1:
                raise ValueError(f"expected a table of one key, one of {', '.join(known)}; got {shown(raw)}")
            slug, settings = next(iter(cast(Raw, raw).items()))
            if slug not in known:
                raise ValueError(unknown(str(slug), known))
            try:
                return self.converter.structure(settings, known[slug])
            except Exception as error:
                error.add_note(AttributeValidationNote("", slug, kind))  # pyright: ignore[reportArgumentType]
                raise

        # By the type itself: subclasses are read field by field.
        self.converter.register_structure_hook_func(lambda asked: asked is kind, read)

    def accept_word(self, kind: type[T], field: str) -> None:
        """Read a dataclass from a word, too, which stands for a table with this one field."""
        read = self.converter.get_structure_hook(kind)

        def either(raw: Any, asked: Any) -> T:
            return read({field: raw} if isinstance(raw, str) else raw, asked)

        self.converter.register_structure_hook_func(lambda asked: asked is kind, either)

    def read(self, raw: object, kind: type[T], where: str, at: Sequence[str | int] = (), also: Sequence[str] = ()) -> T:
        """One dataclass from the plain tables that stand in file ``where`` at the path ``at``.

        An unknown key may be a misspelling of a key of the dataclass, or of a key in ``also``.

        Raises:
            ConfigError: for an unknown or missing key, a wrong type, or a refused value.
        """
        refuse_unusable(raw, where, at)
        try:
            return self.converter.structure(raw, kind)
        except (BaseValidationError, ValueError, TypeError, KeyError, AttributeError) as error:
            path, message = _first_problem(error, also)
            raise ConfigError(": ".join(part for part in (where, dotted([*at, *path]), message) if part)) from error

    def _tuple_hook(self, kind: Any) -> Callable[[Any, Any], Any]:
        element = get_args(kind)[0]

        def read(raw: Any, _kind: Any) -> tuple[Any, ...]:
            if not isinstance(raw, list | tuple):
                raise TypeError(f"expected a list, got {shown(raw)}")
            items: list[Any] = []
            for index, item in enumerate(cast("Sequence[Any]", raw)):
                try:
                    items.append(self.converter.structure(item, element))
                except Exception as error:
                    error.add_note(IterableValidationNote("", index, element))  # pyright: ignore[reportArgumentType]
                    raise
            return tuple(items)

        return read


def _bool(raw: Any, _kind: Any) -> bool:
    if not isinstance(raw, bool):
        raise TypeError(f"expected true or false, got {shown(raw)}")
    return raw


def _int(raw: Any, _kind: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise TypeError(f"expected a whole number, got {shown(raw)}")
    return raw


def _float(raw: Any, _kind: Any) -> float:
    power = re.fullmatch(r"2\^(-?\d{1,3}(?:\.\d{1,6})?)", raw) if isinstance(raw, str) else None
    if power:
        return 2.0 ** float(power[1])
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise TypeError(f'expected a number or a power such as "2^-8", got {shown(raw)}')
    if not math.isfinite(raw):
        raise ValueError(f"must be finite, got {raw}")
    return float(raw)


def _str(raw: Any, _kind: Any) -> str:
    if not isinstance(raw, str):
        raise TypeError(f"expected a string, got {shown(raw)}")
    return raw


def _settings(raw: Any, _kind: Any) -> Settings:
    if not isinstance(raw, Mapping):
        raise TypeError(f"expected a table, got {shown(raw)}")
    return Settings(cast("Mapping[str, Any]", raw))


def _is_variadic_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[1:] == (Ellipsis,)


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _literal_hook(kind: Any) -> Callable[[Any, Any], Any]:
    choices = get_args(kind)
    named = ", ".join(str(choice).lower() if isinstance(choice, bool) else repr(choice) for choice in choices)

    def read(raw: Any, _kind: Any) -> Any:
        if not any(raw == choice and type(raw) is type(choice) for choice in choices):
            raise ValueError(f"expected one of {named}, got {shown(raw)}")
        return raw

    return read


def _first_problem(error: BaseException, also: Sequence[str]) -> tuple[list[str | int], str]:
    path: list[str | int] = []
    while True:
        for note in reversed(getattr(error, "__notes__", [])):
            if isinstance(note, AttributeValidationNote):
                path.append(note.name)
            elif isinstance(note, IterableValidationNote):
                path.append(note.index)
        if not isinstance(error, BaseValidationError):
            break
        error = error.exceptions[0]
    if isinstance(error, ForbiddenExtraKeysError):
        takes = [f.name for f in fields(cast(Any, error.cl))] + ([] if path else list(also))
        wrong = sorted(map(str, error.extra_fields))[0]
        near = difflib.get_close_matches(wrong, takes, n=1)
        hint = f"it takes '{near[0]}'" if near else f"it takes {', '.join(takes) or 'no keys'}"
        return path, f"unknown {shown(wrong)}; {hint}"
    if isinstance(error, KeyError):
        return path, "missing"
    # The errors of the code that cattrs generates, for a value that is not a table.
    if re.search(r"object (has no|is not)|argument of type .* is not", str(error)):
        return path, "expected a table"
    return path, " ".join(str(error).split())
