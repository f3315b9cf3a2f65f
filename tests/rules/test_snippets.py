"""The snippets of README and docs/rules.md run as they stand, and their rules act."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from trimtab.rules import AttachedRules

ROOT = Path(__file__).resolve().parents[2]


def snippets(page: str, word: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if word in block]


def test_the_plain_loop_of_the_readme_runs_with_muon_and_update_clip() -> None:
    (snippet,) = snippets("README.md", "rules.attach")
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["rules"].steps == 10
    assert names["rules"].names == ["update_clip"]
    assert type(names["optimizer"].parts[0]).__name__ == "OrthogonalMomentum"


def test_the_trainer_of_the_readme_runs_with_ada_gc_and_qk_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    (snippet,) = snippets("README.md", "RulesCallback")
    steps: list[int] = []
    whole = AttachedRules.after_step
    monkeypatch.setattr(AttachedRules, "after_step", lambda self: (whole(self), steps.append(self.steps)))
    exec(snippet, {})
    assert steps == list(range(1, 11))


def test_the_snippets_of_the_page_run() -> None:
    (attached,) = snippets("docs/rules.md", "rules.attach")
    names: dict[str, Any] = {}
    exec(attached, names)
    assert names["rules"].names == ["ada_gc", "qk_clip"]
    (trainer,) = snippets("docs/rules.md", "trainer_of")
    exec(trainer, names)
    assert callable(names["trainer_of"])


def test_the_study_of_the_page_is_valid() -> None:
    import tomllib

    from trimtab.study.kind import read_any_study

    text = (ROOT / "docs/rules.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    spec = read_any_study(
        {"reference": "clip", "learning_rates": {"low": 0.01, "high": 0.1}, **tomllib.loads(table)}, "docs"
    )
    assert len(spec.arms) == 4
