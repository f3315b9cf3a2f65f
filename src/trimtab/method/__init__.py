"""Methods: tuples of interventions, installed in a model together, removed or merged, and named in saved weights."""

from trimtab.method.installed import Installed, RemovalError, installed_in
from trimtab.method.marks import Mark, SavedMethodError, marks_in
from trimtab.method.method import Method, NotInstallableError, family_matrices, install, method_parameters

__all__ = [
    "Installed",
    "Mark",
    "Method",
    "NotInstallableError",
    "RemovalError",
    "SavedMethodError",
    "family_matrices",
    "install",
    "installed_in",
    "marks_in",
    "method_parameters",
]
