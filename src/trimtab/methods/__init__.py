"""The catalogue people compare: one named tuple of interventions a file.

``trimtab.methods.qk_norm`` is the method itself; a new file in this folder, named after its slug, is all it takes, as
is an entry point ``trimtab.methods`` of another package. ``of`` lists the methods of saved weights, ``install_saved``
puts them into a model.
"""

from __future__ import annotations

from trimtab.method import Method
from trimtab.registry import Catalogue
from trimtab.saved import install_saved, of

__all__ = ["catalogue", "install_saved", "of"]

_CATALOGUE = Catalogue[Method](
    __name__, lambda value: isinstance(value, Method), lambda method: method.slug, first="baseline"
)


def catalogue() -> dict[str, Method]:
    """Every method by slug, also those of other packages; the baseline first, the rest in alphabetical order."""
    return _CATALOGUE.all()


def __getattr__(name: str) -> Method:
    if name.startswith("__"):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    methods = catalogue()
    if name not in methods:
        raise AttributeError(f"no method is called '{name}'; there are {', '.join(methods)}")
    return methods[name]


# Loading a file binds its name to the module; after this it is the method. Those of other packages come when asked for:
# such a package may be importing this one.
globals().update(_CATALOGUE.ours())
