"""The index of a study, which maps every trial to its run.

``index.json`` holds the text of ``study.toml``, the run id of every trial, and the basis of each arm's runs (version of
the numbers, data, and user code). A stored study is read from the index, so run ids are not computed again from the
current code or data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from trimtab.run.cost import ModelCost
from trimtab.run.files import IntegrityError, hash_of, read_sealed, write_sealed, write_whole
from trimtab.run.identity import Basis
from trimtab.study.trial import Tick, Trial

INDEX = "index.json"
STUDY = "study.toml"
SCHEMA = 1
REMEDY = "restore it from a copy, or delete it: 'trimtab study' writes it again from the runs"


@dataclass(slots=True)
class Index:
    """The index of one study folder.

    Attributes:
        study: the text of study.toml.
        runs: the run id of every trial that was asked for.
        bases: the basis of each arm's runs as plain values; None for runs of version 0.1.0, which did not record it.
        complete: whether the search is finished.
        notes: differences of data, code or numbers that the user accepted, in words.
        costs: the costs of the arms' models that an analysis has requested so far.
    """

    study: str
    runs: dict[Trial, str] = field(default_factory=dict[Trial, str])
    bases: dict[str, dict[str, Any] | None] = field(default_factory=dict[str, "dict[str, Any] | None"])
    complete: bool = False
    notes: list[str] = field(default_factory=list[str])
    costs: dict[str, ModelCost] = field(default_factory=dict[str, ModelCost])

    def save(self, folder: Path, before: Sequence[str] = ()) -> None:
        """Write the index. ``before`` are further hashes of study.toml that are accepted until the next ``save``."""
        write_sealed(
            folder / INDEX,
            {
                "schema": SCHEMA,
                "study": self.study,
                "files": {STUDY: [_hash(self.study), *before]},
                "trials": [_row(trial, name) for trial, name in self.runs.items()],
                "bases": self.bases,
                "complete": self.complete,
                "notes": self.notes,
                "costs": {arm: cost.table() for arm, cost in self.costs.items()},
            },
        )

    def extend(self, folder: Path, study: str) -> None:
        """Replace the text of study.toml. The folder stays readable if the process is killed at any moment."""
        before = [_hash(self.study)]
        self.study = study
        self.complete = False
        self.save(folder, before)
        write_whole(folder / STUDY, study)
        self.save(folder)


def load_index(folder: Path) -> Index:
    """The index of a study folder, checked against study.toml.

    Raises:
        IntegrityError: if the index is damaged, or study.toml was changed.
    """
    file = folder / INDEX
    record = read_sealed(file, REMEDY)
    try:
        if record["schema"] != SCHEMA:
            raise IntegrityError(f"{file}: written by a later version of trimtab; install that version")
        index = Index(
            study=str(record["study"]),
            runs={
                Trial(round_, arm, Tick(tick), seed, data_seed, *repeat): str(name)
                for round_, arm, tick, seed, data_seed, name, *repeat in record["trials"]
            },
            bases=record["bases"],
            complete=bool(record["complete"]),
            notes=[str(note) for note in record["notes"]],
            costs={arm: ModelCost(**cost) for arm, cost in cast("dict[str, Any]", record["costs"]).items()},
        )
        accepted = [str(digest) for digest in record["files"][STUDY]]
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{file}: damaged ({type(error).__name__}: {error}); {REMEDY}") from error
    study = folder / STUDY
    if study.exists() and hash_of(study) not in accepted:
        raise IntegrityError(
            f"{study}: changed since the study was made; restore it, or delete it (the index has its text). To change "
            "the study, write another file and give it to 'trimtab study' with this folder as --out"
        )
    return index


def differences(stored: Mapping[str, dict[str, Any] | None], now: Mapping[str, Basis]) -> list[str]:
    """Differences between the stored and the current basis of each arm, in words."""
    lines: list[str] = []
    for arm, basis in now.items():
        old = stored.get(arm)
        if old is None:
            continue
        new = basis.table()
        if old["numerics"] != new["numerics"]:
            lines.append(f"{arm}: the version of the numbers is {old['numerics']} there and {new['numerics']} here")
        if old["data"] != new["data"]:
            lines.append(f"{arm}: other data ({str(old['data'])[:12]} there, {str(new['data'])[:12]} here)")
        for role in sorted({*old["code"], *new["code"]}):
            lines += [f"{arm}: {line}" for line in _code_differences(role, old["code"], new["code"])]
    return lines


def _code_differences(role: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = old.get(role), new.get(role)
    if before is None or after is None:
        return [f"code of the {role} is {'not used' if after is None else 'used'} here"]
    lines = [f"the code of the {role} differs"] if before["text"] != after["text"] else []
    versions = {*before["distributions"], *after["distributions"]}
    for name in sorted(versions):
        there, here = (code["distributions"].get(name, "not used") for code in (before, after))
        if there != here:
            lines.append(f"{name} is {there} there and {here} here")
    return lines


def _row(trial: Trial, name: str) -> list[object]:
    """Round, arm, sixteenths of an octave, seeds, run id, and the number of a repeat unless it is 0."""
    row: list[object] = [trial.round, trial.arm, int(trial.tick), trial.seed, trial.data_seed, name]
    return [*row, trial.repeat] if trial.repeat else row


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
