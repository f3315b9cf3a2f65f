"""The named places of a decoder, and the contract of an adapter that offers them.

Shape legend, used as suffixes everywhere: ``B`` sequences, ``T`` positions, ``D`` model width,
``H`` heads (``G`` of keys and values where several queries share one), ``K`` channels of one head,
``S`` keys, ``R`` query rows that a probe looks at, ``F`` hidden width of the MLP, ``V`` vocabulary.
"""

from trimtab.host.adapter import Host, SiteUnavailableError
from trimtab.host.mode import evaluating
from trimtab.host.names import Part, Site
from trimtab.host.part_view import PartView, stored_weight
from trimtab.host.points import AttentionPoint, AttentionWatcher, Point, block_points
from trimtab.host.slot import Listener, Slot, Tap, Watcher

__all__ = [
    "AttentionPoint",
    "AttentionWatcher",
    "Host",
    "Listener",
    "Part",
    "PartView",
    "Point",
    "Site",
    "SiteUnavailableError",
    "Slot",
    "Tap",
    "Watcher",
    "block_points",
    "evaluating",
    "stored_weight",
]
