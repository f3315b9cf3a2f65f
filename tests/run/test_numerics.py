"""The numbers stay as they are unless ``NUMERICS`` says otherwise: shown by runs that are held fast, on patched
copies."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trimtab.run.numerics import NUMERICS

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden.py")


def load_golden() -> Any:
    spec = importlib.util.spec_from_file_location("golden", GOLDEN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = load_golden()
FIELD = '    compile: Literal[True, False, "auto"] = False\n'
NAMES = list(golden.stored()["runs"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return golden.specs(tmp_path_factory.mktemp("golden"))


def test_every_method_optimizer_schedule_and_data_source_is_held_fast(runs: dict[str, Any]) -> None:
    assert sorted(runs) == sorted(NAMES)
    assert golden.stored()["numerics"] == NUMERICS, "NUMERICS rose: write the losses again"


@pytest.mark.parametrize("name", NAMES)
def test_no_loss_has_moved(runs: dict[str, Any], name: str) -> None:
    assert golden.moved(name, runs[name], golden.stored()["runs"][name]) == ""


def patched(folder: Path, changes: Mapping[str, tuple[str, str]]) -> Path:
    """A copy of the source with one text replaced in each of some files."""
    source = folder / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (old, new) in changes.items():
        file = source / "trimtab" / name
        text = file.read_text()
        assert old in text, f"{name} has changed: mend this test"
        file.write_text(text.replace(old, new))
    return source


def python(source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"optim/adamw.py": ("beta2: float = 0.95", "beta2: float = 0.99")}, "optimizer adamw"),
        (
            {
                "models/gpt.py": (
                    "        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)\n"
                    "        self.proj = nn.Linear(config.width, config.width, bias=config.bias)\n",
                    "        self.proj = nn.Linear(config.width, config.width, bias=config.bias)\n"
                    "        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)\n",
                )
            },
            "method baseline",
        ),
        ({"models/gpt.py": ("eps=1e-5", "eps=1e-6")}, "method baseline"),
    ],
    ids=["a default", "the order of two draws", "eps of a norm"],
)
def test_a_change_of_the_numbers_fails(tmp_path: Path, changes: dict[str, tuple[str, str]], name: str) -> None:
    done = python(patched(tmp_path, changes), str(GOLDEN), "check", name)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.match(rf"{name}: (training|held_out) moved by ", done.stdout)


def test_a_mended_source_another_torch_a_new_field_and_moved_data_rename_no_run(
    tmp_path: Path, token_file: Path
) -> None:
    """The same study before and after: no id moves, nothing is trained again, and the report works without the data."""
    tokens = tmp_path / "tokens.bin"
    shutil.copy(token_file, tokens)
    study = tmp_path / "study.toml"
    text = f"""
        learning_rates = {{ low = "2^-6", high = "2^3", octaves_apart = 3 }}
        arms = {{ baseline = {{}} }}
        model = {{ width = 16, num_layers = 1, num_heads = 2, context = 8, tied = false }}
        training = {{ steps = 20, batch_size = 4 }}
        schedule = {{ warmup_steps = 2 }}
        evaluation = {{ evaluations = 4, num_sequences = 8 }}
        search = {{ replicates = 1, probes_per_round = 2, most_runs = 7 }}
        data = {{ token_files = {{ train = "{tokens}", held_out = "{tokens}", vocab_size = 8 }} }}
    """
    study.write_text(text)
    folder = tmp_path / "out"
    first = python(ROOT / "src", "-m", "trimtab", "study", str(study), "--out", str(folder), "--workers", "0")
    assert first.returncode == 0, first.stderr
    before = {path.name for path in (folder / "runs").iterdir()}
    source = patched(
        tmp_path,
        {
            "run/execute.py": ("recorder = token_recorder(", "recorder = kept = token_recorder("),  # a variable
            "loop.py": ("losses: list[Tensor] = []", "losses: list[Tensor] = []\n        # another comment\n"),
            "run/facts.py": ('"""Compute the outcome', '"""Work out the outcome'),  # a docstring
            "run/environment.py": ('"torch": torch.__version__', '"torch": "99.0.0"'),
            "run/spec.py": (FIELD, FIELD + '    fresh: str = field(default="", metadata={"neutral": ""})\n'),
        },
    )  # fmt: skip
    moved = tokens.rename(tmp_path / "moved.bin")
    study.write_text(text.replace(str(tokens), str(moved)).replace("most_runs = 7", "most_runs = 9"))
    again = python(source, "-m", "trimtab", "study", str(study), "--out", str(folder), "--workers", "0")
    assert again.returncode == 0, again.stderr
    assert "sweep: 4 runs, 0 to train" in again.stdout
    after = {path.name for path in (folder / "runs").iterdir()}
    assert before < after, "the larger cap asked for no further run, or a run was renamed"
    moved.unlink()
    report = python(source, "-m", "trimtab", "report", str(folder))
    assert report.returncode == 0, report.stderr
    results = json.loads((folder / "results.json").read_text())
    made = results["provenance"]["runs_by_versions"]
    assert sorted(made.values()) == sorted([len(before), len(after - before)])
    assert any("torch 99.0.0" in versions for versions in made)
    assert "the runs were made with 2 different sets of versions" in report.stdout
