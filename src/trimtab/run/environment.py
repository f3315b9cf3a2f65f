"""What may differ between two equal runs: versions and the machine."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

VERSIONS = ("trimtab", "torch", "numpy", "python")  # by which the page lists the runs of a study


def environment(device: torch.device) -> dict[str, object]:
    """Versions, processor, and the commit of the working folder where there is one."""
    return {
        "trimtab": import_module("trimtab").__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}),
        **_commit(),
    }


def versions_in(environment: Mapping[str, object]) -> str:
    """'torch 2.13.0, numpy 2.4.0, python 3.12.3' of a stored environment, as far as it says."""
    return ", ".join(f"{name} {environment[name]}" for name in VERSIONS if name in environment) or "not recorded"


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


@functools.cache
def _commit() -> dict[str, str]:
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": found.stdout.strip()}
