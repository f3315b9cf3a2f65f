"""The index of a study: which trial is which run, written once and read ever after.

``index.json`` holds the text of ``study.toml``, the run of every trial, and what the runs of each arm rest on. Whoever
reads a study reads the index; no name is derived again from today's code or data.
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
REMEDY = "restore it from a copy, or delete it: 'trimtab study' makes it again from the runs"


@dataclass(slots=True)
class Index:
    """The index of one study folder.

    Attributes:
        study: the text of study.toml.
        runs: the run id of every trial that was asked for.
        bases: by arm, what its runs rest on, as plain values; None for runs of version 0.1.0, which did not record it.
        complete: whether the search was carried to its end.
        notes: differences that were accepted, in words.
        costs: what the models of the arms cost, as far as an analysis asked.
    """

    study: str
    runs: dict[Trial, str] = field(default_factory=dict[Trial, str])
    bases: dict[str, dict[str, Any] | None] = field(default_factory=dict[str, "dict[str, Any] | None"])
    complete: bool = False
    notes: list[str] = field(default_factory=list[str])
    costs: dict[str, ModelCost] = field(default_factory=dict[str, ModelCost])

    def save(self, folder: Path, before: Sequence[str] = ()) -> None:
        """Write it; ``before`` are hashes of study.toml that count as right until the next time."""
        write_sealed(
            folder / INDEX,
            {
                "schema": SCHEMA,
                "study": self.study,
                "files": {STUDY: [_hash(self.study), *before]},
                "trials": [[t.round, t.arm, int(t.tick), t.seed, t.data_seed, name] for t, name in self.runs.items()],
                "bases": self.bases,
                "complete": self.complete,
                "notes": self.notes,
                "costs": {arm: cost.table() for arm, cost in self.costs.items()},
            },
        )

    def extend(self, folder: Path, study: str) -> None:
        """Take over another text of study.toml; killed at any moment, the folder stays readable."""
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
                Trial(round_, arm, Tick(tick), seed, data_seed): str(name)
                for round_, arm, tick, seed, data_seed, name in record["trials"]
            },
            bases=record["bases"],
            complete=bool(record["complete"]),
            notes=[str(note) for note in record["notes"]],
            costs={arm: ModelCost(**cost) for arm, cost in cast("dict[str, Any]", record["costs"]).items()},
        )
        accepted = [str(one) for one in record["files"][STUDY]]
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
    """What the runs of each arm rested on and rest on now, where the two differ, in words."""
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
        there, here = (one["distributions"].get(name, "not used") for one in (before, after))
        if there != here:
            lines.append(f"{name} is {there} there and {here} here")
    return lines


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
