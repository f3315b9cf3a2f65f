"""The environment of a run: versions and the machine. It is not part of a run's identity."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

VERSIONS = ("trimtab", "torch", "numpy", "python")  # the page groups the runs of a study by these versions


def environment(device: torch.device) -> dict[str, object]:
    """Versions, the processor, and the git commit of the working folder, if it has one."""
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
    """The versions that a stored environment records, such as 'torch 2.13.0, numpy 2.4.0, python 3.12.3'."""
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
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": done.stdout.strip()}
