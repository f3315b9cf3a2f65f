"""The rules of the house that a machine can check."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src" / "trimtab").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_no_file_is_longer_than_400_lines(path: Path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_reference_gpt_reads_in_one_sitting():
    assert len((ROOT / "src/trimtab/models/gpt.py").read_text().splitlines()) <= 250


def test_nothing_branches_on_the_name_of_a_method():
    chains = [p for p in SOURCES if re.search(r"if .*method.*==|elif .*name ==", p.read_text())]
    assert chains == []


def test_no_room_is_called_utils_or_the_like():
    forbidden = {"utils", "common", "misc", "helpers", "base2", "manager"}
    assert [p for p in SOURCES if p.stem.lower() in forbidden or p.stem.startswith(("new_", "my_"))] == []


def test_a_method_has_one_slug_everywhere():
    from trimtab.methods import catalogue

    for slug, method in catalogue().items():
        assert method.slug == slug
        assert (ROOT / f"src/trimtab/methods/{slug}.py").is_file()
        assert f"### `{slug}`" in (ROOT / "docs/methods.md").read_text()
        assert f"| `{slug}` |" in (ROOT / "README.md").read_text()


def test_every_intervention_says_where_it_comes_from():
    from trimtab.interventions import catalogue

    for slug, kind in catalogue().items():
        assert (ROOT / f"src/trimtab/interventions/{slug}.py").is_file()
        assert kind.source.title
        assert kind.source.equation
        assert re.fullmatch(r"(\d{4}\.\d{4,5})?", kind.source.arxiv), slug


@pytest.mark.nightly  # make check says it too, and it takes a minute
def test_generated_tables_are_fresh():
    done = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_answers_without_importing_torch():
    code = (
        "import sys, trimtab.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_wheel_works_elsewhere_with_corpus_and_presets_inside(tmp_path: Path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import trimtab, sys; from trimtab.cli import main, presets; from trimtab.data import Classics\n"
        "assert trimtab.__file__.startswith(sys.argv[1]), trimtab.__file__\n"
        "assert presets() == ['collapse', 'controls', 'demo', 'depth', 'depth-demo', 'gpu-paper-table', "
        "'gpu-wortsman', 'paper-table', 'scale', 'seeds', 'signals', 'table-4', 'tev']\n"
        "assert len(Classics().load().train) > 10_000_000\n"
        "from trimtab.report.html import resource; assert 'plotly' in resource('vendor/plotly-basic.min.js')[:200]\n"
        "sys.exit(main(['methods']))"
    )
    site = str(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", code, site],
        cwd=tmp_path,
        env={"PYTHONPATH": site, "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
