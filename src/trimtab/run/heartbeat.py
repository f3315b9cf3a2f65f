"""The heartbeat of a run: a small file that shows other processes, on any host, that it makes progress."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from trimtab.run.files import decode_number, encode_number

HEARTBEAT = "heartbeat"
BEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat: its time on the clock of the file system in seconds, the step, and the training loss in nats."""

    time: float
    step: int
    loss: float


def write_beat(run: Path, step: int, loss: float) -> None:
    """Write the heartbeat of a run folder; not atomic, since the next one follows soon."""
    (run / HEARTBEAT).write_text(json.dumps({"step": step, "loss": encode_number(loss)}), encoding="utf-8")


def load_beat(run: Path) -> Beat | None:
    """The last heartbeat of a run folder; None if there is none, or it is just being written."""
    try:
        with (run / HEARTBEAT).open(encoding="utf-8") as file:
            time = os.fstat(file.fileno()).st_mtime
            record = json.load(file)
        return Beat(time, int(record["step"]), float(decode_number(record["loss"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None
