"""A free name for the file of a run: a training that starts again or resumes keeps its earlier readings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def free_names(folder: Path, run: str, suffix: str) -> Iterator[Path]:
    """The names ``run.suffix``, ``run.2.suffix``, ``run.3.suffix`` ... that are free; creates the folder.

    A name can be taken by another process between this answer and its use, so create it exclusively and try the next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / (f"{run}{suffix}" if number == 1 else f"{run}.{number}{suffix}")
        if not path.exists():
            yield path
        number += 1
