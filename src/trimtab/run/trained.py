"""The model of a run that kept its weights, as ``trimtab run`` does."""

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
    """The trained model on the CPU in eval mode, its method installed, and the run it comes from.

    Raises:
        ConfigError: if the folder holds no finished run, or one without weights.
        IntegrityError: if the run is damaged.
    """
    weights = folder / "checkpoints" / "final.safetensors"
    if not (folder / "spec.toml").is_file() or load_outcome(folder) is None:
        raise ConfigError(f"{folder}: not the folder of a finished run")
    if not weights.is_file():
        raise ConfigError(f"{folder}: the run kept no weights; train it with 'trimtab run'")
    file = folder / "spec.toml"
    spec = read_run(load_toml(file), str(file))
    model = build(spec, torch.device("cpu"))
    model.load_state_dict(load_file(weights))
    return model.eval(), spec
