"""A finished run is left as it is, whatever is asked of it; damaged weights are refused by whoever reads them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from trimtab import cli
from trimtab.inspection.checkpoints import open_checkpoint
from trimtab.run.execute import execute
from trimtab.run.files import IntegrityError
from trimtab.run.reading import read_run
from trimtab.run.trained import load_trained

Tables = Callable[..., dict[str, Any]]
Capture = pytest.CaptureFixture[str]
WEIGHTS = "checkpoints/final.safetensors"


@pytest.fixture(scope="module")
def run_tables(tiny_tables: Tables) -> dict[str, Any]:
    tables = tiny_tables(training={"steps": 10})
    keys = ("model", "data", "training", "schedule", "evaluation")
    return {"learning_rate": 0.03} | {key: tables[key] for key in keys}


@pytest.fixture(scope="module")
def run_file(run_tables: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "run.toml"
    path.write_text(tomli_w.dumps(run_tables), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished_run(run_tables: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with weights; copy it before use."""
    runs = tmp_path_factory.mktemp("finished")
    return runs / execute(read_run(run_tables, "run.toml"), runs, keep_weights=True).run_id


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "runs" / finished_run.name))


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and folder: when it was last changed, and its bytes."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


def test_a_finished_run_is_left_as_it_is(run_file: Path, finished: Path, capsys: Capture) -> None:
    before = state_of(finished)
    assert cli.main(["run", str(run_file), "--out", str(finished.parent)]) == 0
    out = capsys.readouterr().out
    assert "training loss" not in out
    assert finished.name in out
    assert state_of(finished) == before
    assert list(finished.parent.iterdir()) == [finished]


def test_a_finished_run_without_weights_is_refused_and_kept(
    run_tables: dict[str, Any], run_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / execute(read_run(run_tables, "run.toml"), tmp_path).run_id
    before = state_of(folder)
    assert cli.main(["run", str(run_file), "--out", str(tmp_path)]) == cli.DAMAGED
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "has no weights" in said.err
    assert "--out" in said.err
    assert state_of(folder) == before


def test_one_flipped_bit_of_the_weights_is_refused_by_every_reader(
    run_file: Path, finished: Path, capsys: Capture
) -> None:
    flip_a_bit(finished / WEIGHTS)
    with pytest.raises(IntegrityError, match=r"final\.safetensors: SHA-256 differs"):
        load_trained(finished)
    with pytest.raises(IntegrityError, match=r"final\.safetensors: SHA-256 differs"):
        open_checkpoint(finished)
    before = state_of(finished)
    for command in (["inspect", str(finished)], ["run", str(run_file), "--out", str(finished.parent)]):
        assert cli.main(command) == cli.DAMAGED
        said = capsys.readouterr()
        assert said.err.count("\n") == 1
        assert "final.safetensors" in said.err
    assert state_of(finished) == before


def test_a_copy_of_a_run_under_another_name_is_inspected(finished: Path) -> None:
    copy = finished.rename(finished.with_name("copy"))
    checkpoint = open_checkpoint(copy)
    assert checkpoint.shapes
    assert checkpoint.steps == copy / "steps.jsonl"


def test_weights_of_a_run_that_has_not_finished_are_inspected(finished: Path) -> None:
    (finished / "outcome.json").unlink()
    checkpoint = open_checkpoint(finished)
    assert checkpoint.shapes
    assert checkpoint.steps is None
