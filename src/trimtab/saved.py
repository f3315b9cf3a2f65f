"""The methods of saved weights: which they are, and a model that has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trimtab.config import Reader, unknown
from trimtab.host import Host
from trimtab.intervention import ModelIntervention, weights_follow
from trimtab.interventions import catalogue
from trimtab.method import Installed, Mark, SavedMethodError, install, marks_in
from trimtab.method.marks import KEY

Weights = Path | str | Mapping[str, Any]
INDEX = "model.safetensors.index.json"


def of(checkpoint: Weights) -> tuple[ModelIntervention, ...]:
    """The interventions that saved weights name, in the order of their installation; empty if they name none.

    Interventions that only set initial weights are not among them. Weights that trimtab 0.1 wrote name none.

    Args:
        checkpoint: a safetensors file, a folder with such files (of transformers, or of a run), or a state dictionary.

    Raises:
        SavedMethodError: if an entry is damaged, or names an intervention that is not known here.
        ValueError: if the path holds no safetensors file.
    """
    if isinstance(checkpoint, Mapping):
        marks = marks_in(checkpoint)
    else:
        marks: dict[str, Mark] = {}
        for file in _files(Path(checkpoint)):
            with _opened(file) as stored:
                names = [name for name in stored.keys() if KEY.fullmatch(name)]  # noqa: SIM118
                marks |= marks_in({name: stored.get_tensor(name) for name in names})
    return tuple(_intervention(mark) for mark in sorted(marks.values(), key=lambda mark: mark.order))


def install_saved(host: Host, checkpoint: Weights) -> tuple[Installed, ...]:
    """Install the interventions that saved weights name, and load the weights: all, or nothing is changed.

    Args:
        host: of a model of the same configuration, fresh or with the weights of the family.
        checkpoint: as for ``of``; keys may have a common prefix, such as ``module.``.

    Raises:
        SavedMethodError: if the weights do not fit the model with these interventions, or an intervention is not known.
        ValueError: if the path holds no safetensors file.
        SiteUnavailableError, ConflictError, NotInstallableError: as ``Method.install``.
    """
    state = dict(checkpoint) if isinstance(checkpoint, Mapping) else _loaded(Path(checkpoint))
    prefix = next((match["prefix"] for key in state if (match := KEY.fullmatch(key))), "")
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    with weights_follow():
        installed = install(of(state), host)
    try:
        _check(host, state)
        host.model.load_state_dict(state, strict=False)  # what a tied weight repeats may be missing
    except BaseException:
        for receipt in reversed(installed):
            receipt.remove()
        raise
    for receipt in installed:
        receipt.mark()
    return installed


def _check(host: Host, state: Mapping[str, Tensor]) -> None:
    wanted: dict[str, Tensor] = host.model.state_dict(keep_vars=True)
    loaded = {id(tensor) for key, tensor in wanted.items() if key in state}
    problems = [
        f"{key} is not there" for key, tensor in wanted.items() if key not in state and id(tensor) not in loaded
    ]
    problems += [f"{key} is not known to the model" for key in state if key not in wanted]
    problems += [
        f"{key} has the shape {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and not KEY.fullmatch(key) and state[key].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise SavedMethodError(f"the saved weights do not fit {type(host.model).__name__}: {problems[0]}{more}")


def _intervention(mark: Mark) -> ModelIntervention:
    known = {slug: kind for slug, kind in catalogue().items() if issubclass(kind, ModelIntervention)}
    if mark.slug not in known:
        raise SavedMethodError(f"the weights were saved with the intervention {unknown(mark.slug, known)}")
    return Reader().read(dict(mark.fields), known[mark.slug], f"the entry {mark.key} of the saved weights")


def _files(path: Path) -> Sequence[Path]:
    if path.is_file():
        return [path]
    index = path / INDEX
    if index.is_file():
        names: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [path / name for name in sorted(set(names.values()))]
    files = sorted(path.glob("*.safetensors")) or sorted((path / "checkpoints").glob("*.safetensors"))[-1:]
    if not files:
        raise ValueError(
            f"{path}: no safetensors file there; of another format, pass the state dictionary, as from "
            "torch.load(FILE, weights_only=True)"
        )
    return files


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged, or not a safetensors file ({error})") from error


def _loaded(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in _files(path):
        with _opened(file) as stored:
            state |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return state
