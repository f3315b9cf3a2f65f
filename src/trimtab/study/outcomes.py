"""``outcomes.jsonl``, the committed form of a study: a line for each run with its trial, its outcome and its losses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.run.files import IntegrityError, write_whole
from trimtab.run.folder import Outcome, outcome_of, record_of
from trimtab.study.trial import Tick, Trial

OUTCOMES = "outcomes.jsonl"
UNFINISHED = "unfinished.json"  # the number of runs that an unfinished study had asked for and not made
REMEDY = "restore it from a copy"


@dataclass(frozen=True, slots=True)
class Made:
    """A run of a committed study.

    Attributes:
        blocks: final losses by held-out part and block, in nats; empty if the run has none.
    """

    trial: Trial
    outcome: Outcome
    blocks: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])


def write_outcomes(folder: Path, runs: Sequence[Made], pending: int | None) -> None:
    """Write the runs of a study; ``pending`` is the number of runs not made yet, None if the study is finished."""
    if pending is None:
        (folder / UNFINISHED).unlink(missing_ok=True)
    else:
        write_whole(folder / UNFINISHED, json.dumps({"pending": pending}) + "\n")
    write_whole(folder / OUTCOMES, "".join(json.dumps(_row(run), allow_nan=False) + "\n" for run in runs))


def read_outcomes(folder: Path) -> list[Made]:
    """The runs of a committed study.

    Raises:
        IntegrityError: if a line is damaged.
    """
    file = folder / OUTCOMES
    runs: list[Made] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            runs.append(_made(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(
                f"{file}: line {number} is damaged ({type(error).__name__}: {error}); {REMEDY}"
            ) from error
    return runs


def read_pending(folder: Path) -> int | None:
    """The number of runs that an unfinished study had asked for and not made; None if the study is finished.

    Raises:
        IntegrityError: if the file is damaged.
    """
    file = folder / UNFINISHED
    if not file.is_file():
        return None
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["pending"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{file}: damaged ({type(error).__name__}: {error}); {REMEDY}") from error


def _row(run: Made) -> dict[str, Any]:
    trial = run.trial
    row: dict[str, Any] = {
        "arm": trial.arm,
        "lr": trial.learning_rate,
        "seed": trial.seed,
        "round": trial.round,
    }
    if trial.data_seed is not None:
        row["data_seed"] = trial.data_seed
    if trial.repeat:
        row["repeat"] = trial.repeat
    row |= record_of(run.outcome)
    if run.blocks:
        row["texts"] = {name: [round(loss, 6) for loss in losses] for name, losses in run.blocks.items()}
    return row


def _made(row: dict[str, Any]) -> Made:
    seeds = int(row["seed"]), row.get("data_seed"), int(row.get("repeat", 0))
    trial = Trial(int(row["round"]), str(row["arm"]), Tick.nearest(row["lr"]), *seeds)
    return Made(trial, outcome_of(row), row.get("texts", {}))
