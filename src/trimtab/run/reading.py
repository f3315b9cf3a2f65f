"""Read a ``RunSpec`` from the tables of a run file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, cast

from trimtab import data, interventions, methods, optim
from trimtab.config import ConfigError, Raw, Reader, dotted, merge, shown, unknown
from trimtab.data import Classics, TokenSource
from trimtab.intervention import Intervention
from trimtab.optim import AdamW, Decay, OptimizerConfig
from trimtab.run.spec import SECTIONS, RunSpec, Seeds, TrainingProtocol

KeyPath = tuple[str | int, ...]


@cache
def reader() -> Reader:
    """The reader that knows data sources, interventions and optimizers by their slugs."""
    made = Reader()
    made.accept_tagged(TokenSource, data.catalogue)
    made.accept_tagged(Intervention, interventions.catalogue)
    made.accept_tagged(OptimizerConfig, optim.catalogue)
    made.accept_word(Decay, "coupling")
    return made


def read_protocol(raw: Raw, where: str, at: KeyPath = ()) -> TrainingProtocol:
    """A protocol from its sections, which are at the path ``at`` of the file.

    A model without ``vocab_size`` takes that of the data.

    Raises:
        ConfigError: as for ``Reader.read``.
    """
    source = reader().read(raw["data"], TokenSource, where, (*at, "data")) if "data" in raw else Classics()
    model = raw.get("model", {})
    if isinstance(model, dict):
        model = {"vocab_size": source.vocab_size} | cast(Raw, model)
    raw = raw | {"model": model}
    if "optimizer" in raw:
        raw["optimizer"] = tagged_optimizer(raw["optimizer"])
    return reader().read(raw, TrainingProtocol, where, at)


def tagged_optimizer(raw: Any) -> Any:
    """The table of an optimizer under its tag. A table without a tag is that of AdamW, as in older files."""
    if not isinstance(raw, dict):
        return raw
    table = cast(Raw, raw)
    # Two tags at once are left alone: the reader then names what it expects.
    return table if is_tagged(table) or set(table) & set(optim.catalogue()) else {AdamW.slug(): table}


def lay_over(base: Raw, over: Raw) -> Raw:
    """The sections of ``base``, overridden key by key by those of ``over``.

    A tagged optimizer in ``over`` replaces the optimizer of ``base`` completely.
    """
    merged = merge(base, {key: value for key, value in over.items() if key != "optimizer"})
    if "optimizer" not in over:
        return merged
    above, below = over["optimizer"], tagged_optimizer(base.get("optimizer", {}))
    adamw = AdamW.slug()
    if isinstance(above, dict) and not is_tagged(cast(Raw, above)):
        shared = cast(Raw, below).get(adamw, {}) if isinstance(below, dict) else {}
        above = {adamw: merge(cast(Raw, shared), cast(Raw, above)) if isinstance(shared, dict) else above}
    return merged | {"optimizer": above}


def is_tagged(table: Raw) -> bool:
    """Whether an optimizer's table is tagged.

    A tagged table has one key, which holds a table and is not a setting of AdamW. A misspelt slug counts as a tag.
    """
    key = next(iter(table), "")
    settings = {f.name for f in fields(AdamW)}
    return len(table) == 1 and key not in settings and isinstance(table[key], dict)


def read_method(raw: Any, where: str, at: KeyPath = ()) -> tuple[Intervention, ...]:
    """The interventions of a method, from its slug or from a list of interventions at the path ``at`` of the file.

    Raises:
        ConfigError: for an unknown slug or a bad setting.
    """
    known = methods.catalogue()
    if isinstance(raw, str) and raw in known:
        return known[raw].interventions
    if not isinstance(raw, list):
        problem = (
            unknown(raw, known)
            if isinstance(raw, str)
            else (f"expected the name of a method or a list of interventions, got {shown(raw)}")
        )
        raise ConfigError(f"{where}: {dotted((*at, 'method'))}: {problem}")
    return reader().read({"method": raw}, _Interventions, where, at).method


@dataclass(frozen=True)
class _Interventions:
    method: tuple[Intervention, ...]


def read_run(raw: Raw, where: str) -> RunSpec:
    """A run from the tables of a run file.

    Raises:
        ConfigError: for an unknown or missing key, a wrong type, or a refused value.
    """
    sections = {key: value for key, value in raw.items() if key in SECTIONS}
    rest = reader().read({k: v for k, v in raw.items() if k not in SECTIONS}, _RunKeys, where, also=SECTIONS)
    return RunSpec(
        protocol=read_protocol(sections, where),
        method=read_method(raw.get("method", "baseline"), where),
        learning_rate=rest.learning_rate,
        seeds=rest.seeds,
        repeat=rest.repeat,
    )


@dataclass(frozen=True, kw_only=True)
class _RunKeys:
    learning_rate: float
    seeds: Seeds = field(default_factory=lambda: Seeds.all_equal(0))
    repeat: int = 0
    method: Any = "baseline"

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.repeat < 0:
            raise ValueError(f"repeat must not be negative, got {self.repeat}")
