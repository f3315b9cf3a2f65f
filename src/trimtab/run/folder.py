"""The folder of one run. A run is finished if its outcome, which is written last, is complete."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import numpy as np
from numpy.typing import NDArray

from trimtab.run.files import (
    IntegrityError,
    decode_number,
    encode_number,
    hash_of,
    read_sealed,
    write_bytes,
    write_json,
    write_sealed,
    write_whole,
)
from trimtab.run.heartbeat import BEAT_SECONDS, HEARTBEAT, write_beat

__all__ = ["IntegrityError", "Outcome", "RunFolder", "decode_number", "encode_number", "load_outcome", "write_whole"]

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 4
READABLE = (2, 3, 4)  # 2 has no hashes of spec.toml, environment.json and the weights; 3 has no restored runs
SPEC = "spec.toml"
ENVIRONMENT = "environment.json"
WEIGHTS = "checkpoints/final.safetensors"
STEPS = "steps.jsonl"
READINGS = "probes.jsonl"
TEXTS = "texts.json"
TIMES = "times.json"
PREDICTIONS = "predictions.npz"
TOKENS = "tokens.npz"
OUTCOME = "outcome.json"
WRITTEN = (SPEC, ENVIRONMENT, STEPS, READINGS, TEXTS, TIMES, PREDICTIONS, TOKENS, WEIGHTS)
REMEDY = "delete that folder to train the run again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The facts of a finished run. Labels are derived from them elsewhere. Losses are in nats.

    Attributes:
        stopped: why the run ended before its last step; None if it did not end early.
        steps: optimizer steps taken.
        initial_loss: held-out loss before training.
        final_loss: median held-out loss of the last evaluations; nan after a non-finite value.
        norm_ratio: largest L2 norm over all weight matrices of the family together, divided by its initial value.
        spike: largest excess of a training loss over the trailing 201-step median, after warm-up.
        held_out: (step, loss) of every evaluation.
        seconds: wall time of training, used only for planning.
    """

    run_id: str
    stopped: Literal["non_finite", "exploded"] | None
    steps: int
    initial_loss: float
    final_loss: float
    norm_ratio: float
    spike: float
    log_vocab: float
    unigram_entropy: float
    bytes_per_token: float
    held_out: tuple[tuple[int, float], ...]
    seconds: float


class NotOwnedError(RuntimeError):
    """Another process may write this run now; this one must stop."""


class RunFolder:
    """Writes one run. ``begin`` deletes the files of an interrupted attempt.

    Args:
        path: the folder.
        owned: whether this process may still write it; ``begin``, ``beat`` and ``finish`` raise ``NotOwnedError`` if
            not.
    """

    def __init__(self, path: Path, owned: Callable[[], bool] = lambda: True) -> None:
        self.path = path
        self.owned = owned
        self._steps: TextIO | None = None
        self._readings: TextIO | None = None
        self._beat = 0.0

    def begin(self, spec_toml: str, environment: Mapping[str, object]) -> None:
        """Delete the folder and create it again, with the specification and the environment of the run."""
        self._check_owned()
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        write_whole(self.path / SPEC, spec_toml)
        write_json(self.path / ENVIRONMENT, environment)
        self._steps = (self.path / STEPS).open("w", encoding="utf-8")
        self.beat(0, math.nan)

    def beat(self, step: int, loss: float) -> None:
        """Write the heartbeat file, at most once a second, to show other processes that the run makes progress."""
        now = time.monotonic()
        if now - self._beat >= BEAT_SECONDS:
            self._beat = now
            self._check_owned()
            write_beat(self.path, step, loss)

    def append(self, row: Mapping[str, int | float | None]) -> None:
        """Add one step row; a non-finite number is written as text, None as null."""
        assert self._steps is not None, "begin() comes first"
        self._steps.write(json.dumps({k: encode_number(v) for k, v in row.items()}, allow_nan=False) + "\n")

    def append_reading(self, row: Mapping[str, float]) -> None:
        """Add one row of probes, in the format of ``append``; the first row creates the file."""
        if self._readings is None:
            self._readings = (self.path / READINGS).open("w", encoding="utf-8")
        self._readings.write(json.dumps({k: encode_number(v) for k, v in row.items()}, allow_nan=False) + "\n")

    def write_texts(self, losses: Mapping[str, Sequence[float]]) -> None:
        """Write the final loss of every block of each held-out part, in nats."""
        plain = {name: [encode_number(loss) for loss in values] for name, values in losses.items()}
        write_json(self.path / TEXTS, plain)

    def write_times(self, times: Mapping[str, float]) -> None:
        """Write the durations of readings, in seconds."""
        write_json(self.path / TIMES, times)

    def write_arrays(self, name: str, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Write arrays by name into one compressed file."""
        np.savez_compressed(self.path / name, allow_pickle=False, **arrays)

    @property
    def has_weights(self) -> bool:
        """Whether the folder holds the weights of the trained model."""
        return (self.path / WEIGHTS).is_file()

    def write_weights(self, state: Mapping[str, Tensor], name: str) -> None:
        """Write the weights of the trained model."""
        from safetensors.torch import save  # safetensors.torch imports torch, which reading a folder does not need

        (self.path / WEIGHTS).parent.mkdir()
        plain = {key: value.detach().cpu().clone() for key, value in state.items()}
        write_bytes(self.path / WEIGHTS, save(plain, metadata={"run_id": name}))

    def finish(self, outcome: Outcome) -> None:
        """Synchronise the rows to disk, then write the outcome atomically."""
        assert self._steps is not None, "begin() comes first"
        for file in (self._steps, self._readings):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
        self.close()
        self._check_owned()
        record = record_of(outcome)
        files = {name: hash_of(self.path / name) for name in WRITTEN if (self.path / name).exists()}
        write_sealed(self.path / OUTCOME, {"schema": SCHEMA, **record, "files": files})
        (self.path / HEARTBEAT).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        for file in (self._steps, self._readings):
            if file is not None:
                file.close()
        self._steps = self._readings = None

    def _check_owned(self) -> None:
        if not self.owned():
            raise NotOwnedError(f"{self.path.name}: another process trains this run now")


def load_outcome(path: Path, *, named: bool = True) -> Outcome | None:
    """The outcome of a run folder; None if the run is not finished.

    Args:
        path: the folder.
        named: whether the name of the folder must be the run id. A copy of a run folder may have another name.

    Raises:
        IntegrityError: if the outcome cannot be read, or a file that it lists is changed or missing.
    """
    file = path / OUTCOME
    if not file.exists():
        return None
    record = read_sealed(file, REMEDY)
    try:
        files = cast("dict[str, str]", record["files"])
        if record["schema"] not in READABLE or (named and record["run_id"] != path.name):
            raise IntegrityError(f"{file}: belongs to another run or version; {REMEDY}")
        outcome = outcome_of(record)
        restored = bool(record.get("restored"))  # from a committed study, without rows, with arrays it kept
        for name in files if restored else {STEPS: "", **files}:
            if name not in WRITTEN and not (restored and name == Path(name).name and name.endswith(".npz")):
                raise IntegrityError(f"{file}: lists '{name}', which is not a file of a run; {REMEDY}")
            if hash_of(path / name) != files[name]:
                raise IntegrityError(f"{path / name}: SHA-256 differs from that in {OUTCOME}; {REMEDY}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{file}: damaged ({type(error).__name__}: {error}); {REMEDY}") from error
    return outcome


def outcome_of(record: Mapping[str, Any]) -> Outcome:
    """An outcome from its JSON record."""
    curve = tuple((int(step), float(decode_number(loss))) for step, loss in record["held_out"])
    facts: dict[str, Any] = {name: decode_number(record[name]) for name in Outcome.__slots__}
    return Outcome(**cast(Any, {**facts, "held_out": curve}))


def record_of(outcome: Outcome) -> dict[str, Any]:
    """The inverse of ``outcome_of``."""
    record = {name: encode_number(getattr(outcome, name)) for name in Outcome.__slots__}
    record["held_out"] = [[step, encode_number(loss)] for step, loss in outcome.held_out]
    return record


def load_environment(path: Path) -> Mapping[str, Any]:
    """The recorded environment of a run; empty if it was not recorded.

    Raises:
        IntegrityError: if the file cannot be read.
    """
    file = path / ENVIRONMENT
    if not file.is_file():
        return {}
    try:
        return cast("dict[str, Any]", json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{file}: damaged ({type(error).__name__}: {error}); {REMEDY}") from error


def load_steps(path: Path) -> Sequence[dict[str, Any]]:
    """The step rows of a finished run, in order."""
    return _rows(path / STEPS)


def load_readings(path: Path) -> Sequence[dict[str, Any]]:
    """The rows of probes of a finished run, in order; empty if the run had no probes."""
    return _rows(path / READINGS) if (path / READINGS).exists() else []


def load_texts(path: Path) -> Mapping[str, Sequence[float]]:
    """The final losses by held-out part and block, in nats; empty if the run has none.

    Raises:
        IntegrityError: if the file is damaged.
    """
    with _damage_named(path / TEXTS):
        if not (path / TEXTS).exists():
            return {}
        raw = cast("dict[str, list[Any]]", json.loads((path / TEXTS).read_text(encoding="utf-8")))
        return {name: [float(decode_number(loss)) for loss in losses] for name, losses in raw.items()}


def load_times(path: Path) -> Mapping[str, float]:
    """The durations of readings, in seconds; empty if the run had none.

    Raises:
        IntegrityError: if the file is damaged.
    """
    with _damage_named(path / TIMES):
        if not (path / TIMES).exists():
            return {}
        return {name: float(time) for name, time in json.loads((path / TIMES).read_text(encoding="utf-8")).items()}


def load_arrays(path: Path, name: str) -> Mapping[str, NDArray[Any]]:
    """The arrays of one file of a finished run; empty if the run has no such file.

    Raises:
        IntegrityError: if the file is damaged.
    """
    with _damage_named(path / name):
        if not (path / name).exists():
            return {}
        with np.load(path / name, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}


def _rows(file: Path) -> Sequence[dict[str, Any]]:
    with _damage_named(file):
        lines = file.read_text(encoding="utf-8").splitlines()
        return [{k: decode_number(v) for k, v in json.loads(line).items()} for line in lines]


@contextlib.contextmanager
def _damage_named(file: Path) -> Generator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{file}: damaged ({type(error).__name__}: {error}); {REMEDY}") from error
