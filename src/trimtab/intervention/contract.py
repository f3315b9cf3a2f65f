"""What every intervention is: a frozen dataclass with a slug and a source."""

from __future__ import annotations

import re
from abc import ABC
from dataclasses import dataclass
from typing import ClassVar


class ConflictError(ValueError):
    """Two interventions, or an intervention and the model family, alter the same thing; nothing was changed."""


class TrainedModelError(ValueError):
    """New initial weights would discard what a trained model has learned; nothing was changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The publication that describes a method.

    Attributes:
        title: title of the publication.
        arxiv: arXiv identifier; empty if there is none.
        place: section, equation or experiment in the publication.
        equation: the method as one line of plain-text mathematics.
        deviations: choices made where the publication is silent, uncertain, or not followed.
    """

    title: str
    arxiv: str
    place: str
    equation: str
    deviations: tuple[str, ...] = ()


class Intervention(ABC):
    """One change to training: a frozen dataclass whose fields are its configuration."""

    source: ClassVar[Source]

    @classmethod
    def slug(cls) -> str:
        """The name used in config tables, saved weights, reports and docs."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
