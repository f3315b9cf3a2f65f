"""A package that is installed beside trimtab adds one of each thing without an edit of any file of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]

ENTRY_POINTS = """
[trimtab.methods]
halved = trimtab_additions:halved
[trimtab.interventions]
halved_branch = trimtab_additions:HalvedBranch
[trimtab.probes]
mean_square = trimtab_additions:mean_square
[trimtab.optimizers]
sign_descent = trimtab_additions:SignDescent
[trimtab.data]
circle = trimtab_additions:Circle
[trimtab.hosts]
OutsideGPTHost = trimtab_additions:OutsideGPTHost
[trimtab.kinds]
one_rate = trimtab_additions:one_rate
"""

STUDY = """
kind = "one_rate"
name = "from outside"
arms = { baseline = {}, halved = {}, "by hand" = { method = [{ halved_branch = {} }], optimizer = { adamw = {} } } }
optimizer = { sign_descent = { momentum = 0.5 } }
data = { circle = {} }
model = { width = 16, num_layers = 1, num_heads = 2, context = 8 }
training = { steps = 20, batch_size = 4 }
schedule = { warmup_steps = 2 }
evaluation = { evaluations = 4, num_sequences = 8 }
probes = { named = ["mean_square"], every = 5 }
"""


def install(site: Path, entry_points: str = ENTRY_POINTS) -> None:
    """A distribution as pip leaves it."""
    shutil.copy(Path(__file__).with_name("additions.py"), site / "trimtab_additions.py")
    info = site / "trimtab_additions-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trimtab-additions\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


def trimtab(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(part for part in (str(site), os.environ.get("PYTHONPATH", "")) if part)
    command = [sys.executable, "-m", "trimtab", *arguments]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=200, cwd=site
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of an outside kind with outside arms on outside data."""
    site = tmp_path_factory.mktemp("site")
    install(site)
    (site / "study.toml").write_text(STUDY)
    done = trimtab(site, "study", "study.toml", "--out", "out", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "Losses at one rate" in " ".join(done.stdout.split())
    assert done.stderr == ""
    return site / "out"


def test_a_kind_an_optimizer_a_method_an_intervention_and_data_from_outside_make_a_study(study: Path) -> None:
    results = json.loads((study / "results.json").read_text())
    assert results["kind"] == "one_rate"
    losses = results["losses"]
    assert set(losses) == {"baseline", "halved", "by hand"}
    assert len(set(losses.values())) == 3, "an addition did nothing"
    specs = [(run / "spec.toml").read_text() for run in (study / "runs").iterdir()]
    assert sum("[optimizer.sign_descent]" in text for text in specs) == 2
    assert sum("halved_branch" in text for text in specs) == 2
    assert all("[data.circle]" in text for text in specs)


def test_a_probe_from_outside_is_read_inside_the_runs(study: Path) -> None:
    for run in (study / "runs").iterdir():
        rows = [json.loads(line) for line in (run / "probes.jsonl").read_text().splitlines()]
        keys = [key for key in rows[0] if key.endswith("/mean_square")]
        assert keys
        assert all(row[key] > 0 for row in rows for key in keys if not key.startswith("parameter/"))


def test_the_report_and_the_schema_know_the_kind_from_outside(study: Path) -> None:
    done = trimtab(study.parent, "report", "out")
    assert done.returncode == 0, done.stderr
    code = "import json; from trimtab.report.schema import schema; print(json.dumps(schema('one_rate')))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(study.parent), os.environ.get("PYTHONPATH", "")])}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    jsonschema.validate(json.loads((study / "results.json").read_text()), json.loads(printed.stdout))


def test_a_method_from_outside_is_listed_and_is_a_method(study: Path) -> None:
    listed = trimtab(study.parent, "methods", "halved")
    assert listed.returncode == 0, listed.stderr
    assert "An outside method" in listed.stdout
    code = (
        "import trimtab, torch; from trimtab.method import Method; from trimtab import methods, GPT, GPTConfig;"
        "import trimtab.methods.qk_norm;"
        "assert isinstance(methods.halved, Method) and isinstance(methods.qk_norm, Method);"
        "print(trimtab.host_for(GPT(GPTConfig(width=16, num_heads=2))).family)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(study.parent), os.environ.get("PYTHONPATH", "")])}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert printed.stdout.strip() == "outside GPT", printed.stderr


def test_the_version_of_the_package_is_part_of_the_identity(study: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(study.parent, site)
    (site / "trimtab_additions.py").write_text(
        (site / "trimtab_additions.py").read_text().replace("return x / 2", "return x / 3")
    )
    done = trimtab(site, "study", "study.toml", "--out", "out", "--workers", "0")
    assert done.returncode == 2
    assert "--keep" in done.stderr
    assert "halved" in done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gone = trimtab_additions:nothing_of_this_name", "cannot be loaded"),
        ("broken = trimtab_additions:broken", "is not an entry of this catalogue"),
        ("other = trimtab_additions:halved", "its slug is 'halved'"),
        ("qk_norm = trimtab_additions:halved", "'qk_norm' is taken"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_and_stops_nothing_else(tmp_path: Path, line: str, words: str) -> None:
    install(tmp_path, f"[trimtab.methods]\n{line}\n")
    done = trimtab(tmp_path, "methods", "qk_norm")
    assert done.returncode == 0, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
