"""Short runs whose losses are held fast: ``python tests/run/golden.py check [NAME ...]``, or ``write`` after NUMERICS
rose.

Every method, optimizer, schedule and data source is trained once for 8 steps with its defaults unset, so that a
change of a default shows. The peak LR is 2^-6, where processors differ by less than 1e-6 in all
but the runs in ``LOOSER``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from trimtab import data, methods, optim
from trimtab.intervention import GradientRule
from trimtab.run.execute import execute
from trimtab.run.folder import load_steps
from trimtab.run.numerics import NUMERICS
from trimtab.run.reading import read_run

FILE = Path(__file__).with_name("golden.json")
TOLERANCE = 3e-6
LOOSER = {
    "optimizer muon": 1e-4,  # its Newton-Schulz iteration runs in bf16
    "optimizer muon_h": 1e-4,
    "method qkv_norm": 1e-5,  # an EPYC of family 17 is 4.3e-6 from the processor that wrote the losses
    "method wesar": 5e-5,  # a Xeon of another generation is 1.3e-5 away
}
TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. "


def specs(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables of every run, by name; what they read is written into ``folder``."""
    text = folder / "text.txt"
    text.write_text(TEXT * 400)
    tokens = folder / "tokens.bin"
    (np.arange(4000) ** 2 % 37).astype("<u2").tofile(tokens)
    settings = {
        "text_files": {"paths": [str(text)]},
        "token_files": {"train": str(tokens), "held_out": str(tokens), "vocab_size": 37},
    }
    runs: dict[str, dict[str, Any]] = {}
    for slug in methods.catalogue():
        replaced = any(isinstance(i, GradientRule) for i in methods.catalogue()[slug].interventions)
        runs[f"method {slug}"] = run(method=slug, **({"common": []} if replaced else {}))
    for slug in optim.catalogue():
        runs[f"optimizer {slug}"] = run(optimizer={slug: {}}, steps=5 if slug.startswith("muon") else 8)
    for shape in ("cosine", "linear", "constant"):
        runs[f"schedule {shape}"] = run(schedule={"shape": shape})
    for slug in data.catalogue():
        runs[f"data {slug}"] = run(data={slug: settings.get(slug, {})})
    runs["schedule by default"] = run(schedule={})
    return runs


def run(*, steps: int = 8, schedule: dict[str, Any] | None = None, **tables: Any) -> dict[str, Any]:
    """One run: small, with a peak and a floor of the schedule inside its steps."""
    return {
        "learning_rate": 2.0**-6,
        "model": {"width": 32, "num_layers": 2, "num_heads": 2, "context": 16},
        "training": {"steps": steps, "batch_size": 8},
        "evaluation": {"num_sequences": 16},
        "schedule": {"warmup_steps": 3, **(schedule or {})},
        **tables,
    }


def losses_of(raw: dict[str, Any]) -> dict[str, list[float]]:
    """Training losses by step and held-out losses by evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = execute(read_run(raw, "golden"), Path(folder))
        rows = load_steps(Path(folder) / outcome.run_id)
        return {
            "training": [row["loss"] for row in rows if row["step"] > 0],
            "evaluated": [float(step) for step, _ in outcome.held_out],
            "held_out": [loss for _, loss in outcome.held_out],
        }


def stored() -> dict[str, Any]:
    """The content of the file."""
    return json.loads(FILE.read_text())


def moved(name: str, raw: dict[str, Any], expected: dict[str, list[float]]) -> str:
    """What is not as it was, in words; "" if all is."""
    found = losses_of(raw)
    tolerance = LOOSER.get(name, TOLERANCE)
    for what, values in expected.items():
        if len(found[what]) != len(values):
            return f"{name}: {len(found[what])} numbers of {what}, there were {len(values)}"
        off = max(abs(a - b) for a, b in zip(found[what], values, strict=True))
        if not off <= tolerance:
            return f"{name}: {what} moved by {off:.2g}"
    return ""


def main() -> int:
    command, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        runs = specs(Path(folder))
        if command == "write":
            content = {"numerics": NUMERICS, "runs": {name: losses_of(raw) for name, raw in runs.items()}}
            FILE.write_text(json.dumps(content, indent=1) + "\n")
            return 0
        expected = stored()["runs"]
        lines = [moved(name, runs[name], expected[name]) for name in names or runs]
    print("\n".join(line for line in lines if line))
    return int(any(lines))


if __name__ == "__main__":
    sys.exit(main())
