"""Adapters, one file per model family, and the search for the right one."""

from __future__ import annotations

from collections import Counter

from torch import nn

from trimtab.host import Host, Part
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


def parameter_counts(host: Host) -> Counter[Part]:
    """Parameters by part, each counted once: a tied head has none of its own, a shared QKV matrix is shared out.

    Parameters that belong to no part, such as learned positions, are not counted.
    """
    views = host.find_parts()
    sharers = Counter(id(view.module) for view in views)
    counts: Counter[Part] = Counter()
    seen: dict[int, int] = {}
    for view in views:
        for parameter in view.module.parameters():
            owner = seen.setdefault(id(parameter), id(view.module))
            if owner == id(view.module):
                counts[view.part] += parameter.numel() // sharers[owner]
    return counts
