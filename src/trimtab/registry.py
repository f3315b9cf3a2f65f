"""Discovery of the entries of every catalogue: modules of trimtab and entry points of other packages.

An entry is an object with a slug. The entries of trimtab are in the modules of the catalogue's package, such as
``trimtab.methods``. Another distribution declares its entries as entry points of the group with the same name:

.. code-block:: toml

    [project.entry-points."trimtab.methods"]
    my_norm = "my_package.my_norm:my_norm"
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class CatalogueError(ValueError):
    """An entry of a catalogue cannot be used. The message names the entry point, its value and its group."""


@dataclass(frozen=True)  # no slots, because typing sets an attribute on instances of a generic class
class Catalogue(Generic[T]):
    """The entries of one catalogue by slug.

    Attributes:
        package: the package with the entries of trimtab.
        accepts: returns whether an object is an entry.
        slug_of: returns the slug of an entry.
        first: the slug of the entry that comes first; the others are in alphabetical order.
        group: the group of the entry points of other packages; the name of the package if empty.
    """

    package: str
    accepts: Callable[[object], bool]
    slug_of: Callable[[Any], str]
    first: str = ""
    group: str = ""

    def all(self) -> dict[str, T]:
        """Every entry, by slug. An entry point that cannot be used is omitted, with a warning that names it."""
        entries: dict[str, T] = dict(self.ours())
        for slug, point in self._points().items():
            try:
                entries[slug] = self._loaded(point, entries)
            except CatalogueError as error:
                warnings.warn(f"trimtab: {error}", stacklevel=2)
        return dict(sorted(entries.items(), key=lambda entry: (entry[0] != self.first, entry[0])))

    def get(self, slug: str) -> T:
        """The entry with a slug.

        Raises:
            KeyError: if no entry has the slug.
            CatalogueError: if the entry point with that name cannot be used.
        """
        ours = self.ours()
        if slug in ours:
            return ours[slug]
        return self._loaded(self._points()[slug], ours)

    def ours(self) -> Mapping[str, T]:
        """The entries of trimtab, by slug, in the alphabetical order of their modules."""
        return _ours(self)

    def _points(self) -> Mapping[str, EntryPoint]:
        return _entry_points(self.group or self.package)

    def _loaded(self, point: EntryPoint, ours: Mapping[str, T]) -> T:
        origin = f"entry point {point.name} = {point.value} of group {self.group or self.package}"
        if point.name in ours:
            raise CatalogueError(f"{origin}: '{point.name}' is taken by an entry of trimtab; choose another name")
        try:
            value = point.load()
        except Exception as error:  # any error of another package concerns only that entry
            raise CatalogueError(f"{origin}: cannot be loaded ({type(error).__name__}: {error})") from error
        if not self.accepts(value):
            raise CatalogueError(f"{origin}: a {type(value).__name__} is not an entry of this catalogue")
        if self.slug_of(value) != point.name:
            raise CatalogueError(f"{origin}: its slug is '{self.slug_of(value)}'; give the entry point that name")
        return value


@cache  # the reader of a study asks for every value of every table, and the modules of a package stay what they are
def _ours(catalogue: Catalogue[T]) -> Mapping[str, T]:
    package = importlib.import_module(catalogue.package)
    entries: dict[str, T] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{catalogue.package}.{info.name}")
        for value in vars(module).values():
            # A class is an entry of the module that defines it, not of a module that imports it.
            imported = isinstance(value, type) and value.__module__ != module.__name__
            if not imported and catalogue.accepts(value):
                entries[catalogue.slug_of(value)] = cast(T, value)
    return MappingProxyType(entries)


@cache  # reading the metadata of every installed distribution takes tens of milliseconds
def _entry_points(group: str) -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
