"""A study as a Python object, from arms and a model builder, from a file, or from a study folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from trimtab.config import Raw, load_toml
from trimtab.method import Method
from trimtab.run.spec import ModelBuilder, OptimizerBuilder, UserCode
from trimtab.study.driver import OnChange, run_study
from trimtab.study.executors.contract import Executor, ExecutorConfig
from trimtab.study.executors.inline import Inline
from trimtab.study.executors.processes import Processes
from trimtab.study.kind import DEFAULT, KINDS, read_any_study
from trimtab.study.round import Display
from trimtab.study.specification import StudySpec

ArmTable = str | Method | Mapping[str, Any]


class Study:
    """A comparison of arms, ready to run.

    Args:
        arms: a sequence of slugs or methods, or a mapping from names to arms. An arm is a slug, a method, or a table as
            in a study file, in which ``model`` and ``optimizer`` may be builders as below, for that arm only.
        learning_rates: a table with low, high and octaves_apart, for the kinds of study that have one.
        model: a builder, which is called with a ``GPTConfig`` for its vocab_size and context and returns a module that
            maps tokens (B, T) to logits (B, T, V). Its code is part of every run's identity. None, or a table of
            ``GPTConfig``, builds the GPT of trimtab.
        config: if ``model`` is a builder, the table of the ``GPTConfig`` that it is called with, such as
            ``{"context": 128}``.
        optimizer: a builder, which is called with the model and the peak LR. None builds AdamW; a table builds the
            optimizer that it describes.
        settings: the other tables of a study file, such as training, schedule, criterion, search and data.

    Raises:
        ConfigError: as for a study file.
    """

    def __init__(
        self,
        *,
        arms: Sequence[str | Method] | Mapping[str, ArmTable],
        learning_rates: Mapping[str, object] | None = None,
        model: ModelBuilder | Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        optimizer: OptimizerBuilder | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        for name, table in (("model", config), ("model", model), ("optimizer", optimizer)):
            if isinstance(table, Mapping):
                settings[name] = dict(cast("Mapping[str, Any]", table))
        if not isinstance(arms, Mapping):
            arms = {arm.slug if isinstance(arm, Method) else arm: {"method": arm} for arm in arms}
        tables = {name: dict(arm) if isinstance(arm, Mapping) else {"method": arm} for name, arm in arms.items()}
        raw: Raw = {**settings, "arms": tables}
        if learning_rates is not None:
            raw["learning_rates"] = dict(learning_rates)
        if (
            settings.get("reference") is None
            and "baseline" not in tables
            and _has_reference(settings.get("kind", DEFAULT))
        ):
            raw["reference"] = next(iter(tables), "baseline")
        code = UserCode(
            model=None if isinstance(model, Mapping) else model,
            optimizer=None if isinstance(optimizer, Mapping) else optimizer,
        )
        self.spec = read_any_study(raw, "Study", code)

    @classmethod
    def of(cls, spec: StudySpec) -> Study:
        """A study from its specification."""
        study = cls.__new__(cls)
        study.spec = spec
        return study

    def run(
        self,
        out: str | Path = "trimtab-study",
        *,
        workers: int | None = None,
        executor: Executor | ExecutorConfig | None = None,
        display: Display | None = None,
        reuse: Sequence[str | Path] = (),
        on_change: OnChange = "stop",
    ) -> Any:
        """Carry out the missing runs of the study in the folder ``out``, and analyse it.

        Args:
            out: the study folder. The same study in the same folder trains no run twice.
            workers: number of processes; 0 trains in this process; None means one per core or, on CUDA, per device.
            executor: replaces the processes of this machine, for example ``Slurm(partition="gpu")``.
            display: shows the progress; None shows nothing.
            reuse: other study folders or exports, from which finished runs with the same id are taken.
            on_change: the action for stored runs whose version of the numbers, data or user code differs from the
                current one: "stop", "keep" or "retrain".

        Returns:
            The findings; their type depends on the kind of study.

        Raises:
            ConfigError: if an arm cannot be built or sent to a worker, the folder holds other files or another study,
                or stored runs have changed and ``on_change`` is "stop".
            StudyLockedError: if another live process has locked the folder.
            StorageError: if the folder cannot be written.
        """
        chosen = executor or default_executor(workers)
        if isinstance(chosen, ExecutorConfig):
            chosen = chosen.start(self.spec, Path(out))
        others = [Path(other) for other in reuse]
        return run_study(self.spec, Path(out), chosen, display, others, on_change=on_change)


def _has_reference(slug: object) -> bool:
    try:
        return isinstance(slug, str) and KINDS.get(slug).has_reference
    except KeyError:  # the reader reports the unknown kind
        return False


def default_executor(workers: int | None, per_gpu: int = 1) -> ExecutorConfig:
    """Processes on this machine, as many as ``workers`` says; 0 trains in this process, and None takes all cores."""
    return Inline() if workers == 0 else Processes(workers=workers or 0, per_gpu=per_gpu)


def load_study(path: str | Path) -> Study:
    """The study of a TOML file, or of a study folder.

    Raises:
        ConfigError: if the file is missing or refused.
    """
    file = Path(path)
    if file.is_dir():
        file /= "study.toml"
    return Study.of(read_any_study(load_toml(file), str(file)))
