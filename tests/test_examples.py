"""Examples and the README's snippets run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.host import Host
from trimtab.study.kind import read_any_study
from trimtab.testing import HostContract

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_a_study_of_an_own_module_runs(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples/own_model.py", tmp_path / "out", "40"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "clip at 1: best loss" in done.stdout
    assert len(list((tmp_path / "out" / "runs").iterdir())) >= 16


EXAMPLES = {
    "watch_gpt2": "entropy of head 0 in layer 1",
    "qk_norm_on_llama": "of the method: trimtab.qk_norm.model.layers.0",
    "hf_trainer": "last reading at step 6",
    "nanogpt_loop": "step 10: largest attention logit",
    "inspect_series": "4 checkpoints",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_does_what_it_says(name: str, tmp_path: Path):
    folder = [] if name == "nanogpt_loop" else [tmp_path / "out"]
    command = [sys.executable, ROOT / f"examples/{name}.py", *folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    assert EXAMPLES[name] in done.stdout


@pytest.mark.nightly
@pytest.mark.slow
def test_a_study_of_a_hugging_face_configuration_runs(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples/hf_study.py", tmp_path / "out", "40"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "qk_norm: best loss" in done.stdout


# Runs an example several times, with a study that only prints what it is asked for.
STUBBED = """
import json, runpy, sys, types
import trimtab
class Study:
    def __init__(self, **settings):
        self.steps = settings["training"]["steps"]
    def run(self, folder):
        print(f"{folder}, {self.steps} steps")
        return types.SimpleNamespace(arms={})
trimtab.Study = Study
for arguments in json.loads(sys.argv[2]):
    sys.argv = [sys.argv[0], *arguments]
    runpy.run_path(PATH, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("name", "folder", "steps"), [("own_model", "own-model-study", 300), ("hf_study", "llama-study", 400)]
)
def test_folder_and_steps_of_a_study_are_optional_arguments(name: str, folder: str, steps: int, tmp_path: Path):
    path = str(ROOT / f"examples/{name}.py")
    arguments = json.dumps([[], ["my folder"], ["out", "40"]])
    command = [sys.executable, "-c", f"PATH = {path!r}\n{STUBBED}", path, arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{folder}, {steps} steps", f"my folder, {steps} steps", "out, 40 steps"]


def test_every_file_in_examples_is_run_by_a_test():
    assert {file.stem for file in (ROOT / "examples").glob("*.py")} == {*EXAMPLES, "own_model", "hf_study"}


def test_the_host_of_the_documentation_holds_the_contract():
    (snippet,) = re.findall(
        r"```python\n(from torch import nn\n.*?)```", (ROOT / "docs/hosts.md").read_text(), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(snippet, names)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.head_width = 2, 8
            self.qkv, self.out = nn.Linear(16, 48, bias=False), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
            return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    class MLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).relu())

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(16), Attention(), nn.LayerNorm(16), MLP()

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class MyDecoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.layers = nn.Embedding(64, 16), nn.ModuleList(Block() for _ in range(2))
            self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 64, bias=False)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            for layer in self.layers:
                x = layer(x)
            return self.head(self.norm(x))

    class Contract(HostContract):
        def make_host(self) -> Host:
            return names["MyHost"](MyDecoder())

    assert names["MyHost"].fits(MyDecoder())
    tests = [name for name in dir(Contract) if name.startswith("test_")]
    assert len(tests) > 8
    for name in tests:
        getattr(Contract(), name)()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_a_package_written_after_the_documentation_adds_what_the_documentation_says(tmp_path: Path):
    """Modules, entry points and the study file are those of the pages, word for word."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    points: dict[str, dict[str, str]] = {}
    for page in ("kinds.md", "optimizers.md", "methods.md", "probes.md"):
        (module,) = (block for block in blocks(page, "python") if block.startswith('"""'))
        declared = [tomllib.loads(b)["project"]["entry-points"] for b in blocks(page, "toml") if "entry-points" in b]
        named = {target for groups in declared for group in groups.values() for target in group.values()}
        for group in (one for groups in declared for one in groups.items()):
            points.setdefault(group[0], {}).update(group[1])
        (name,) = {target.split(":")[0].removeprefix("my_package.") for target in named}
        (package / f"{name}.py").write_text(module)
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in points.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    (study,) = (block for block in blocks("kinds.md", "toml") if "one_rate" in block and "entry-points" not in block)
    (tmp_path / "study.toml").write_text(study + "[arms.branch_scale]\n[arms.sgd]\nmethod = 'baseline'\n")
    settings = ["seeds=1", "training.steps=10", "schedule.warmup_steps=2", "model.num_layers=1", "model.width=16"]
    settings += ["model.num_heads=2", "arms.sgd.optimizer.sgd.momentum=0.5", 'probes.named=["mean_square"]']
    command = [sys.executable, "-m", "trimtab", "study", "study.toml", "--out", "out", "--workers", "0"]
    path = os.pathsep.join(part for part in (str(tmp_path), os.environ.get("PYTHONPATH", "")) if part)
    done = subprocess.run(
        command + [word for setting in settings for word in ("--set", setting)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    losses = json.loads((tmp_path / "out" / "results.json").read_text())["mean_losses"]
    assert list(losses) == ["baseline", "qk_norm", "soft_cap", "branch_scale", "sgd"]
    assert len(set(losses.values())) >= 4, "an addition did nothing"
    assert "mean_square" in (next((tmp_path / "out" / "runs").iterdir()) / "probes.jsonl").read_text()


def test_the_study_with_its_own_optimizers_is_valid():
    (table,) = (block for block in blocks("optimizers.md", "toml") if "entry-points" not in block)
    spec = read_any_study(tomllib.loads(table), "docs")
    assert [arm.protocol.optimizer.slug() for arm in spec.arms.values()] == ["adamw", "muon", "adamw"]
    names: dict[str, Any] = {}
    (python,) = (block for block in blocks("optimizers.md", "python") if "Study(" in block)
    exec(python, names)
    assert names["study"].spec.arms["sgd"].code.optimizer is names["sgd"]


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_study_file_of_the_readme_is_valid():
    (snippet,) = snippets("toml")
    spec = read_any_study(tomllib.loads(snippet), "README")
    assert list(spec.arms) == ["baseline", "qk_norm", "qk_norm, cap 30", "long warm-up", "muon"]
    assert spec.arms["long warm-up"].protocol.schedule.warmup_steps == 100


def test_the_method_snippet_of_the_readme_runs():
    (snippet,) = (s for s in snippets("python") if "applied" in s)
    exec(snippet, {})


def test_every_command_of_the_readme_exists():
    from trimtab.cli import make_parser

    text = (ROOT / "README.md").read_text()
    for line in re.findall(r"^    trimtab (.*?)(?:\s+#.*)?$", text, re.MULTILINE):
        make_parser().parse_args(line.split())
