"""The part of ``results.json`` that every kind of study has.

The values that may differ between two identical studies (times, versions, paths) are under ``provenance``.
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
    """The facts of a study; each kind adds further facts.

    Attributes:
        complete: whether the search is finished.
        pending: number of trials that the search asked for and that are not finished.
        notes: remarks on the origin of the runs.
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
    """A run without outcome, and the reason."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """The versions, and the training time of all runs.

    Attributes:
        runs_by_versions: number of runs for each set of versions.
    """

    trimtab: str
    torch: str
    numpy: str
    python: str
    system: str
    training_seconds: float
    runs_by_versions: Mapping[str, int]


def provenance_of(outcomes: Sequence[Outcome | None], versions: Mapping[str, int]) -> Provenance:
    """Return the provenance of the report and of its runs."""
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
    """Return 16 hexadecimal digits of the SHA-256 of a complete specification."""
    return hashlib.sha256(canonical(table).encode()).hexdigest()[:16]
