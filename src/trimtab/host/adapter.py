"""The contract of an adapter that offers the sites and parts of one model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from trimtab.host.names import Part, Site
from trimtab.host.part_view import PartView
from trimtab.host.points import AttentionPoint, Point
from trimtab.host.slot import Tap


class SiteUnavailableError(LookupError):
    """A host lacks a site or part that was asked for; nothing was changed."""


class Host(ABC):
    """An adapter that offers the sites and parts of one model family.

    Attributes:
        family: the name shown in errors and tables.
        built_in: slugs of interventions the family already has; installing those is a conflict.
        only_watched: whether the family takes probes only, and no method.
    """

    family: str
    built_in: frozenset[str] = frozenset()
    only_watched: bool = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether the model belongs to this family."""
        return False

    @abstractmethod
    def find_taps(self) -> Sequence[Tap]:
        """Every tap of the model, layer by layer in order of the forward pass."""

    @abstractmethod
    def find_parts(self) -> Sequence[PartView]:
        """Every part of the model, layer by layer in order of the forward pass."""

    def find_points(self) -> Sequence[Point]:
        """Every tensor that probes read, in order of the forward pass."""
        return ()

    def find_attentions(self) -> Sequence[AttentionPoint]:
        """Every attention layer whose queries and keys can be watched, in order."""
        return ()

    def taps(self, site: Site) -> Sequence[Tap]:
        """The taps of one site, in order.

        Raises:
            SiteUnavailableError: if the family does not offer the site.
        """
        every = self.find_taps()
        taps = [tap for tap in every if tap.site is site]
        if not taps:
            raise SiteUnavailableError(
                f"{self.family} offers no site '{site}'; it offers {_listed({tap.site for tap in every})}"
            )
        return taps

    def parts(self, part: Part) -> Sequence[PartView]:
        """The views of one part, in order.

        Raises:
            SiteUnavailableError: if the family does not offer the part.
        """
        every = self.find_parts()
        views = [view for view in every if view.part is part]
        if not views:
            raise SiteUnavailableError(
                f"{self.family} offers no part '{part}'; it offers {_listed({view.part for view in every})}"
            )
        return views


def _listed(names: set[Site] | set[Part]) -> str:
    return ", ".join(sorted(names)) or "none"
