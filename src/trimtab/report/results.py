"""The part of ``results.json`` that every kind of study has.

What may differ between two equal studies (times, versions, paths) stands under ``provenance``.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trimtab import __version__
from trimtab.config import canonical
from trimtab.run.folder import Outcome


@dataclass(frozen=True, slots=True)
class StudyHeading:
    """The study as a whole; a kind adds its own facts.

    Attributes:
        complete: whether the search was carried to its end.
        pending: trials that were asked for and are not made yet.
        notes: what the reader must know of how the runs came together.
        spec: the complete specification.
    """

    name: str
    spec_hash: str
    steps: int
    threads: int
    complete: bool
    pending: int
    notes: Sequence[str]
    warnings: Sequence[str]
    verdicts: Sequence[str]
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Excluded:
    """A run without outcome, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Versions, and the time that the runs took.

    Attributes:
        runs_by_versions: number of runs for each set of versions that made some.
    """

    trimtab: str
    torch: str
    numpy: str
    python: str
    system: str
    training_seconds: float
    runs_by_versions: Mapping[str, int]


def provenance_of(outcomes: Sequence[Outcome | None], versions: Mapping[str, int]) -> Provenance:
    """Of the report that is being written, and of the runs."""
    return Provenance(
        trimtab=__version__,
        torch=torch.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        training_seconds=sum(outcome.seconds for outcome in outcomes if outcome is not None),
        runs_by_versions=dict(versions),
    )


def spec_hash(table: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of a complete specification."""
    return hashlib.sha256(canonical(table).encode()).hexdigest()[:16]
