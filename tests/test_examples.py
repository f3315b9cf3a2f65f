"""Examples and the README's snippets run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from trimtab.study.spec import read_study

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_a_study_of_an_own_module_runs(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples/own_model.py", tmp_path / "out", "40"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "clip at 1: best loss" in done.stdout
    assert len(list((tmp_path / "out" / "runs").iterdir())) >= 16


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_study_file_of_the_readme_is_valid():
    (snippet,) = snippets("toml")
    spec = read_study(tomllib.loads(snippet), "README")
    assert list(spec.arms) == ["baseline", "qk_norm", "qk_norm, cap 30", "long warm-up"]
    assert spec.arms["long warm-up"].protocol.schedule.warmup_steps == 100


def test_the_method_snippet_of_the_readme_runs():
    (snippet,) = (s for s in snippets("python") if "applied" in s)
    exec(snippet, {})


def test_every_command_of_the_readme_exists():
    from trimtab.cli import _parser

    text = (ROOT / "README.md").read_text()
    for line in re.findall(r"^    trimtab (.*?)(?:\s+#.*)?$", text, re.MULTILINE):
        _parser().parse_args(line.split())
