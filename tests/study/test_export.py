"""A study in its small, committed form: reports are made from it, and another machine goes on from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab import Study, cli
from trimtab.config import ConfigError
from trimtab.run.files import IntegrityError
from trimtab.study.executors.contract import Job, Progress, train_job
from trimtab.study.executors.inline import InlineExecutor
from trimtab.study.export import export
from trimtab.study.kind import Findings, read_any_study
from trimtab.study.stored import load_stored

Tables = Callable[..., dict[str, Any]]
Make = Callable[..., Study]
Text = Callable[[Findings], str]
Numbers = Callable[[Findings], Any]

PROBED: dict[str, Any] = {
    "probes": {"preset": "standard", "every": 5},
    "movers": {"edge": "quality", "other_rates": True},
}
KINDS: dict[str, dict[str, Any]] = {
    "max_lr": {},
    "max_lr with movers": PROBED,
    "seeds": {
        "kind": "seeds",
        "seeds": {"learning_rate": "2^-6", "init": 3, "data": 2},
        "probes": {"named": ["tev", "training_map"], "every": 4},
        "training": {"steps": 24},
        "arms": {"baseline": {}},
    },
    "signals": {
        "kind": "signals",
        "learning_rates": {"low": "2^-7", "high": "2^2", "octaves_apart": 9},
        "signals": {"seeds": 2, "fractions": [0.25, 0.5]},
        "probes": {"named": ["tev", "variance"], "every": 3, "tokens": True},
        "training": {"steps": 24, "accumulate": 2},
    },
}
EVERY_TIME = ("max_lr with movers", "seeds")  # the readings of probes go into the export, and runs in groups


@pytest.fixture
def study_of(tiny_tables: Tables) -> Make:
    def make(kind: str) -> Study:
        raw = tiny_tables()
        changes = KINDS[kind]
        if changes.get("kind"):
            raw = {key: value for key, value in raw.items() if key not in ("search", "learning_rates")}
        for key, value in changes.items():
            merged = isinstance(value, dict) and isinstance(raw.get(key), dict) and key != "arms"
            raw[key] = {**raw[key], **value} if merged else value
        return Study.of(read_any_study(raw, kind))

    return make


class Trained:
    """A task that notes what it trains, and is interrupted before it trains more than ``most`` runs."""

    def __init__(self, most: int = 10**6) -> None:
        self.names: list[str] = []
        self.most = most

    def __call__(self, job: Job, progress: Progress) -> None:
        if len(self.names) == self.most:
            raise KeyboardInterrupt
        self.names.append(job.name)
        train_job(job, progress)


def found_in(folder: Path) -> Any:
    return load_stored(folder).findings()


@pytest.fixture
def numbers_of(text_of: Text) -> Numbers:
    """``results.json`` without the wall times that a study of signals reports."""

    def numbers(findings: Findings) -> Any:
        return {key: value for key, value in json.loads(text_of(findings)).items() if key != "costs"}

    return numbers


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in EVERY_TIME else pytest.mark.nightly) for kind in KINDS]
)
@pytest.mark.parametrize("most", [pytest.param(1, marks=pytest.mark.nightly), 5])
def test_a_study_goes_on_from_the_export_of_its_unfinished_folder(
    study_of: Make, tmp_path: Path, numbers_of: Numbers, kind: str, most: int
) -> None:
    study = study_of(kind)
    with pytest.raises(KeyboardInterrupt):
        study.run(tmp_path / "first", executor=InlineExecutor(Trained(most)))
    export(tmp_path / "first", tmp_path / "export")
    shutil.rmtree(tmp_path / "first")
    assert not found_in(tmp_path / "export").evidence.complete

    trained = Trained()
    findings = study.run(tmp_path / "second", executor=InlineExecutor(trained), reuse=[tmp_path / "export"])
    whole = study.run(tmp_path / "whole", workers=0)
    assert len(trained.names) == len(set(whole.evidence.run_ids.values())) - most
    assert numbers_of(findings) == numbers_of(whole)

    export(tmp_path / "second", tmp_path / "later")
    export(tmp_path / "whole", tmp_path / "once")
    assert numbers_of(found_in(tmp_path / "later")) == numbers_of(found_in(tmp_path / "once"))
    assert not (tmp_path / "later" / "unfinished.json").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_of_an_export_is_the_report_of_the_study(
    study_of: Make, tmp_path: Path, numbers_of: Numbers, kind: str
) -> None:
    findings = study_of(kind).run(tmp_path / "study", workers=0)
    before = numbers_of(findings)
    export(tmp_path / "study", tmp_path / "export")
    shutil.rmtree(tmp_path / "study")
    assert numbers_of(found_in(tmp_path / "export")) == before


def test_the_commands_export_and_report(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(finished), str(tmp_path / "small")]) == 0
    assert "runs of the finished study are written to" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "small"), "--out", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "report.html").is_file()


def test_a_run_with_probes_whose_arrays_are_not_in_the_export_is_trained_again(
    study_of: Make, tmp_path: Path, numbers_of: Numbers
) -> None:
    study = study_of("max_lr with movers")
    whole = study.run(tmp_path / "whole", workers=0)
    export(tmp_path / "whole", tmp_path / "export")
    for file in (tmp_path / "export").glob("*.npz"):
        file.unlink()
    trained = Trained()
    findings = study.run(tmp_path / "second", executor=InlineExecutor(trained), reuse=[tmp_path / "export"])
    assert set(trained.names) == set(whole.evidence.run_ids.values())
    assert numbers_of(findings) == numbers_of(whole)


def test_an_export_of_other_data_is_refused(
    tiny: Make, finished: Path, tmp_path: Path, token_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(finished, tmp_path / "export")
    other = tmp_path / "other.bin"
    np.fromfile(token_file, np.uint16)[::-1].tofile(other)
    study = tiny(data={"token_files": {"train": str(other), "held_out": str(other), "vocab_size": 8}})
    with pytest.raises(ConfigError, match="none of its runs is a run of this study on this machine"):
        study.run(tmp_path / "new", workers=0, reuse=[tmp_path / "export"])
    assert not list((tmp_path / "new").glob("runs/*"))


def test_a_restored_run_with_a_changed_file_is_named(study_of: Make, tmp_path: Path) -> None:
    study = study_of("max_lr with movers")
    study.run(tmp_path / "whole", workers=0)
    export(tmp_path / "whole", tmp_path / "export")
    study.run(tmp_path / "second", workers=0, reuse=[tmp_path / "export"])
    kept = sorted((tmp_path / "second").glob("runs/*/movers.npz"))
    assert kept
    kept[0].write_bytes(kept[0].read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"movers\.npz: SHA-256 differs"):
        found_in(tmp_path / "second")


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run folders"):
        export(tmp_path / "nothing", tmp_path / "small")
    with pytest.raises(ConfigError, match="is a study folder; export to another folder"):
        export(finished, finished)
    none = Path(shutil.copytree(finished, tmp_path / "none"))
    for run in (none / "runs").iterdir():
        shutil.rmtree(run)
    with pytest.raises(ConfigError, match="no run is finished yet"):
        export(none, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_a_damaged_export_is_named(tiny: Make, finished: Path, tmp_path: Path) -> None:
    export(finished, tmp_path / "export")
    file = tmp_path / "export" / "outcomes.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = json.dumps({"arm": "baseline"})
    file.write_text("\n".join(lines))
    with pytest.raises(IntegrityError, match=r"outcomes\.jsonl: line 3 is damaged"):
        tiny().run(tmp_path / "new", workers=0, reuse=[tmp_path / "export"])


def test_a_folder_that_is_neither_a_study_nor_an_export_is_refused(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds neither runs nor outcomes\.jsonl"):
        tiny().run(tmp_path / "new", workers=0, reuse=[tmp_path])
    assert not (tmp_path / "new").exists()
