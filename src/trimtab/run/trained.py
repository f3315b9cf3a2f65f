"""Load the trained model of a run that stored its weights, as ``trimtab run`` does."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from trimtab.config import ConfigError, load_toml
from trimtab.run.build import build
from trimtab.run.folder import load_outcome
from trimtab.run.reading import read_run
from trimtab.run.spec import RunSpec


def load_trained(folder: Path) -> tuple[nn.Module, RunSpec]:
    """The trained model, on the CPU, in eval mode and with its method installed, and the specification of its run.

    Raises:
        ConfigError: if the folder holds no finished run, or the run has no weights.
        IntegrityError: if the run is damaged.
    """
    weights = folder / "checkpoints" / "final.safetensors"
    if not (folder / "spec.toml").is_file() or load_outcome(folder) is None:
        raise ConfigError(f"{folder}: not the folder of a finished run")
    if not weights.is_file():
        raise ConfigError(f"{folder}: the run has no weights; train it with 'trimtab run'")
    file = folder / "spec.toml"
    spec = read_run(load_toml(file), str(file))
    model = build(spec, torch.device("cpu"))
    model.load_state_dict(load_file(weights))
    return model.eval(), spec
