"""Adapters, one file per model family, and the search for the right one."""

from __future__ import annotations

from torch import nn

from trimtab.host import Host
from trimtab.hosts.gpt import GPTHost

FAMILIES: tuple[type[GPTHost], ...] = (GPTHost,)


class UnknownFamilyError(TypeError):
    """No adapter knows this model."""


def host_for(model: nn.Module) -> Host:
    """The adapter for a model.

    Raises:
        UnknownFamilyError: if no known family fits; the message lists those that are known.
    """
    for family in FAMILIES:
        if family.fits(model):
            return family(model)
    known = ", ".join(family.family for family in FAMILIES)
    raise UnknownFamilyError(
        f"no host knows {type(model).__name__}; known families: {known}. "
        "Subclass trimtab.host.Host with find_taps and find_parts to adapt another"
    )
