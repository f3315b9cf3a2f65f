"""The folder of one run, and the rule that a folder counts only when its outcome, written last, is whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import numpy as np
from numpy.typing import NDArray

SCHEMA = 2
STEPS = "steps.jsonl"
READINGS = "probes.jsonl"
TEXTS = "texts.json"
TIMES = "times.json"
PREDICTIONS = "predictions.npz"
TOKENS = "tokens.npz"
OUTCOME = "outcome.json"


class IntegrityError(RuntimeError):
    """A stored file does not match its record; the message names it and the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run came to, as facts; a label is derived from them elsewhere. Losses in nats.

    Attributes:
        stopped: why it ended before its last step; None if it did not.
        steps: optimizer steps taken.
        initial_loss: held-out loss before training.
        final_loss: median held-out loss of the last evaluations; nan after a non-finite value.
        norm_ratio: largest L2 norm of the family's weight matrices, all together, over the initial one.
        spike: largest excess of a training loss over the trailing 201-step median, after warm-up.
        held_out: (step, loss) of every evaluation.
        seconds: wall time of the training, for planning only.
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


class RunFolder:
    """Writes one run. ``begin`` clears what an interrupted attempt left."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._steps: TextIO | None = None
        self._readings: TextIO | None = None

    def begin(self, spec_toml: str, environment: Mapping[str, object]) -> None:
        """Start the folder afresh with the run's specification and environment."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        (self.path / "spec.toml").write_text(spec_toml, encoding="utf-8")
        write_json(self.path / "environment.json", environment)
        self._steps = (self.path / STEPS).open("w", encoding="utf-8")

    def append(self, row: Mapping[str, int | float | None]) -> None:
        """Add one step row; a non-finite number is written as text, None as null."""
        assert self._steps is not None, "begin() comes first"
        self._steps.write(json.dumps({k: encode_number(v) for k, v in row.items()}, allow_nan=False) + "\n")

    def append_reading(self, row: Mapping[str, float]) -> None:
        """Add one row of probes, written as ``append`` does; the file begins with the first."""
        if self._readings is None:
            self._readings = (self.path / READINGS).open("w", encoding="utf-8")
        self._readings.write(json.dumps({k: encode_number(v) for k, v in row.items()}, allow_nan=False) + "\n")

    def write_texts(self, losses: Mapping[str, Sequence[float]]) -> None:
        """Keep the final loss of every block of each held-out part, in nats."""
        plain = {name: [encode_number(loss) for loss in some] for name, some in losses.items()}
        write_json(self.path / TEXTS, plain)

    def write_times(self, times: Mapping[str, float]) -> None:
        """Keep what readings took."""
        write_json(self.path / TIMES, times)

    def write_arrays(self, name: str, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Keep arrays by name in one file."""
        np.savez_compressed(self.path / name, allow_pickle=False, **arrays)

    def finish(self, outcome: Outcome) -> None:
        """Make the rows durable, then write the outcome, atomically."""
        assert self._steps is not None, "begin() comes first"
        for file in (self._steps, self._readings):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
        self.close()
        record = {name: encode_number(getattr(outcome, name)) for name in Outcome.__slots__}
        record["held_out"] = [[step, encode_number(loss)] for step, loss in outcome.held_out]
        written = [name for name in (STEPS, READINGS, TEXTS, TIMES, PREDICTIONS, TOKENS) if (self.path / name).exists()]
        files = {name: hashlib.sha256((self.path / name).read_bytes()).hexdigest() for name in written}
        content = {"schema": SCHEMA, **record, "files": files}
        write_json(self.path / OUTCOME, content | {"sha256": _own_hash(content)})

    def close(self) -> None:
        """Let go of the files."""
        for file in (self._steps, self._readings):
            if file is not None:
                file.close()
        self._steps = self._readings = None


def load_outcome(path: Path, *, named: bool = True) -> Outcome | None:
    """The outcome of a run folder; None if the run never finished.

    Args:
        path: the folder.
        named: whether it must bear the run's id, as it does where it was made; a copy may have another name.

    Raises:
        IntegrityError: if the outcome cannot be read, or the step rows differ from those it was written for.
    """
    file = path / OUTCOME
    if not file.exists():
        return None
    remedy = "delete that folder to train the run again"
    try:
        record = cast("dict[str, Any]", json.loads(file.read_text(encoding="utf-8")))
        files = cast("dict[str, str]", record["files"])
        if record.pop("sha256") != _own_hash(record):
            raise IntegrityError(f"{file}: its own SHA-256 differs; {remedy}")
        if record["schema"] != SCHEMA or (named and record["run_id"] != path.name):
            raise IntegrityError(f"{file}: belongs to another run or version; {remedy}")
        curve = tuple((int(step), float(loss)) for step, loss in record["held_out"])
        facts: dict[str, Any] = {name: decode_number(record[name]) for name in Outcome.__slots__}
        outcome = Outcome(**cast(Any, {**facts, "held_out": curve}))
        for name in {STEPS: "", **files}:
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != files[name]:
                raise IntegrityError(f"{path / name}: SHA-256 differs from that in {OUTCOME}; {remedy}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{file}: damaged ({type(error).__name__}: {error}); {remedy}") from error
    return outcome


def load_steps(path: Path) -> Sequence[dict[str, Any]]:
    """The step rows of a finished run, in order."""
    return _rows(path / STEPS)


def load_readings(path: Path) -> Sequence[dict[str, Any]]:
    """The rows of probes of a finished run, in order; none if it had no probes."""
    return _rows(path / READINGS) if (path / READINGS).exists() else []


def load_texts(path: Path) -> Mapping[str, Sequence[float]]:
    """The final losses by held-out part and block, in nats; nothing if the run kept none."""
    if not (path / TEXTS).exists():
        return {}
    raw = cast("dict[str, list[Any]]", json.loads((path / TEXTS).read_text(encoding="utf-8")))
    return {name: [float(decode_number(loss)) for loss in some] for name, some in raw.items()}


def load_times(path: Path) -> Mapping[str, float]:
    """What readings took, in seconds; nothing if the run had none."""
    return json.loads((path / TIMES).read_text(encoding="utf-8")) if (path / TIMES).exists() else {}


def load_arrays(path: Path, name: str) -> Mapping[str, NDArray[Any]]:
    """The arrays of one file of a finished run; nothing if the run kept none."""
    if not (path / name).exists():
        return {}
    with np.load(path / name, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def _rows(file: Path) -> Sequence[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [{k: decode_number(v) for k, v in json.loads(line).items()} for line in lines]


def _own_hash(record: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all."""
    write_whole(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replace a text file atomically and durably."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def encode_number(value: Any) -> Any:
    """JSON has no NaN or infinity: they are written as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def decode_number(value: Any) -> Any:
    """The inverse of ``encode_number``."""
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else value
