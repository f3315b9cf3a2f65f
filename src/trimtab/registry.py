"""One discovery for every catalogue: our own files, and the entry points of other packages, under one rule.

An entry is an object with a slug. Ours lie in the modules of the catalogue's package, ``trimtab.methods`` say; those of
another distribution are declared as entry points of the group of the same name:

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
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class CatalogueError(ValueError):
    """An entry of a catalogue cannot be used; the message names it and the package that it comes from."""


@dataclass(frozen=True)  # no slots: typing writes to an instance of a generic class
class Catalogue(Generic[T]):
    """The entries of one catalogue by slug.

    Attributes:
        package: that holds ours, and the group of the entry points of others.
        accepts: whether an object is an entry.
        slug_of: the slug of an entry.
        first: a slug that comes before all others, which are in alphabetical order.
    """

    package: str
    accepts: Callable[[object], bool]
    slug_of: Callable[[Any], str]
    first: str = ""

    def all(self) -> dict[str, T]:
        """Every entry; an entry point that cannot be used is left out with a warning that names it."""
        entries: dict[str, T] = dict(self.ours())
        for slug, point in self._points().items():
            try:
                entries[slug] = self._loaded(point, entries)
            except CatalogueError as error:
                warnings.warn(f"trimtab: {error}", stacklevel=2)
        return dict(sorted(entries.items(), key=lambda entry: (entry[0] != self.first, entry[0])))

    def get(self, slug: str) -> T:
        """One entry.

        Raises:
            KeyError: if there is no such slug.
            CatalogueError: if the entry point of that name cannot be used.
        """
        ours = self.ours()
        if slug in ours:
            return ours[slug]
        return self._loaded(self._points()[slug], ours)

    def ours(self) -> Mapping[str, T]:
        """The entries that come with trimtab, in the order of their modules."""
        package = importlib.import_module(self.package)
        entries: dict[str, T] = {}
        for found in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{self.package}.{found.name}")
            for value in vars(module).values():
                # A class counts where it is defined, not where it is imported.
                imported = isinstance(value, type) and value.__module__ != module.__name__
                if not imported and self.accepts(value):
                    entries[self.slug_of(value)] = cast(T, value)
        return entries

    def _points(self) -> Mapping[str, EntryPoint]:
        return _entry_points(self.package)

    def _loaded(self, point: EntryPoint, ours: Mapping[str, T]) -> T:
        origin = f"entry point {point.name} = {point.value} of group {self.package}"
        if point.name in ours:
            raise CatalogueError(f"{origin}: '{point.name}' is taken; choose another name")
        try:
            value = point.load()
        except Exception as error:  # whatever another package raises is news of that entry
            raise CatalogueError(f"{origin}: cannot be loaded ({type(error).__name__}: {error})") from error
        if not self.accepts(value):
            raise CatalogueError(f"{origin}: a {type(value).__name__} is not an entry of this catalogue")
        if self.slug_of(value) != point.name:
            raise CatalogueError(f"{origin}: its slug is '{self.slug_of(value)}'; give the entry point that name")
        return value


@cache  # reading the metadata of every installed distribution takes tens of milliseconds
def _entry_points(group: str) -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
