"""The names of the numbers in a row: what is measured, where in the model, and which statistic of it.

All metric keys are composed and parsed here. A key reads ``query/layer.3/rms``; a number of one attention head reads
``attention/layer.3.head.0/entropy``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from typing_extensions import override

_LAYER = re.compile(r"layer\.(\d+)")
_HEAD = re.compile(r"\.head\.(\d+)$")


def where_of(layer: int | None, head: int | None = None) -> str:
    """The middle part of a metric key: ``model``, ``layer.3`` or ``layer.3.head.0``."""
    where = "model" if layer is None else f"layer.{layer}"
    return where if head is None else f"{where}.head.{head}"


class Place(NamedTuple):
    """What is measured and where; the part of a metric key that all statistics of one tensor share.

    Attributes:
        what: name of the tensor, such as ``qkv_output`` or ``fc1_weight_grad``; contains no slash.
        where: ``model``, a layer, a head of a layer, or the name of a module.
    """

    what: str
    where: str

    @override
    def __str__(self) -> str:
        return f"{self.what}/{self.where}"

    def metric(self, statistic: str) -> MetricKey:
        """The key of one statistic of this place."""
        return MetricKey(self.what, self.where, statistic)


def head_of(place: Place, head: int) -> Place:
    """The place of one head of an attention layer or module."""
    return place._replace(where=f"{place.where}.head.{head}")


class MetricKey(NamedTuple):
    """The name of one number in a row.

    Attributes:
        what: name of the tensor, such as ``qkv_output``; contains no slash.
        where: ``model``, a layer, a head of a layer, or the name of a module.
        statistic: slug of the probe, or the name of one of its statistics; contains no slash.
    """

    what: str
    where: str
    statistic: str

    @classmethod
    def parse(cls, text: str) -> MetricKey:
        """The key that was written as ``text``; the name of a module may contain slashes.

        Raises:
            ValueError: if the text is not of the form ``what/where/statistic``.
        """
        what, _, rest = text.partition("/")
        where, _, statistic = rest.rpartition("/")
        if not (what and where and statistic):
            raise ValueError(f"'{text}' is not a metric key; a metric key has the form what/where/statistic")
        return cls(what, where, statistic)

    @override
    def __str__(self) -> str:
        return f"{self.what}/{self.where}/{self.statistic}"

    @property
    def place(self) -> Place:
        """What is measured and where, without the statistic."""
        return Place(self.what, self.where)

    @property
    def layer(self) -> int | None:
        """Index of the layer; None where the number belongs to no numbered layer."""
        match = _LAYER.match(self.where)
        return None if match is None else int(match[1])

    @property
    def head(self) -> int | None:
        """Index of the attention head; None where the number belongs to no single head."""
        match = _HEAD.search(self.where)
        return None if match is None else int(match[1])

    @property
    def without_head(self) -> MetricKey:
        """The key of the same statistic of the whole layer."""
        return self._replace(where=_HEAD.sub("", self.where))
