"""Seams: where attention is read or replaced inside the modules of other libraries."""

from trimtab.seams.attend import SeamMount, attend
from trimtab.seams.find import Attentions, find_attentions
from trimtab.seams.intercepting import InterceptingSeam
from trimtab.seams.multihead import watching_multihead
from trimtab.seams.registry_seam import RegistrySeam

__all__ = [
    "Attentions",
    "InterceptingSeam",
    "RegistrySeam",
    "SeamMount",
    "attend",
    "find_attentions",
    "watching_multihead",
]
