"""Arrays of runs, named ``run id/rest``, in one compressed file: of a whole committed study, or of one restored run.

A *restored* run comes from a committed study. Its folder holds the outcome and the arrays that the study kept, and no
rows of steps.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.run.files import IntegrityError, encode_number, hash_of, write_bytes, write_json, write_sealed, write_whole
from trimtab.run.folder import ENVIRONMENT, OUTCOME, SCHEMA, SPEC, STEPS, TEXTS, Outcome, record_of

Arrays = Mapping[str, NDArray[Any]]


class Kept:
    """The kept arrays of a study folder in files of one name, such as ``movers.npz``: beside the runs, or in a restored
    run's folder.

    Args:
        folder: the study folder.
        name: the name of the file.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name

    @cached_property
    def _shared(self) -> Mapping[str, Arrays]:
        return read_arrays(self.folder / self.name)

    def of(self, run_id: str) -> Arrays | None:
        """The arrays of a run by the rest of their names; None if none were kept."""
        own = self.folder / "runs" / run_id / self.name
        return (read_arrays(own) if own.is_file() else self._shared).get(run_id)


def has_rows(run: Path) -> bool:
    """Whether a run folder holds its rows of steps: the run was trained there or copied whole, not restored."""
    return (run / STEPS).is_file()


def read_arrays(file: Path) -> dict[str, Arrays]:
    """The arrays of a file by run id and the rest of their names; empty without the file.

    Raises:
        IntegrityError: if the file is damaged.
    """
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    if not file.is_file():
        return dict(parts)
    try:
        with np.load(file, allow_pickle=False) as stored:
            for name in stored.files:
                run_id, rest = name.split("/", 1)
                parts.setdefault(run_id, {})[rest] = stored[name]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{file}: damaged ({type(error).__name__}: {error}); restore it from a copy") from error
    return dict(parts)


def write_arrays(file: Path, runs: Mapping[str, Arrays]) -> None:
    """Write arrays by run id and the rest of their names, atomically; the inverse of ``read_arrays``."""
    content = io.BytesIO()
    named = {f"{run_id}/{rest}": array for run_id, arrays in runs.items() for rest, array in arrays.items()}
    np.savez_compressed(content, allow_pickle=False, **named)
    write_bytes(file, content.getvalue())


def restore(
    run: Path,
    outcome: Outcome,
    spec_toml: str,
    environment: Mapping[str, object],
    blocks: Mapping[str, Any],
    kept: Mapping[str, Arrays],
) -> None:
    """Write the folder of a restored run; the outcome, which is written last, makes it count as finished.

    Args:
        run: the folder, named by the run id; what it holds is deleted.
        outcome: the outcome.
        spec_toml: the specification of the run.
        environment: the environment in which it was trained.
        blocks: its final losses by held-out part and block, in nats.
        kept: its arrays by file.
    """
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    write_whole(run / SPEC, spec_toml)
    write_json(run / ENVIRONMENT, environment)
    if blocks:
        write_json(run / TEXTS, {name: [encode_number(loss) for loss in losses] for name, losses in blocks.items()})
    for name, arrays in kept.items():
        write_arrays(run / name, {outcome.run_id: arrays})
    files = {path.name: hash_of(path) for path in sorted(run.iterdir())}
    write_sealed(run / OUTCOME, {"schema": SCHEMA, **record_of(outcome), "files": files, "restored": True})
