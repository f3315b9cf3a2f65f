"""The catalogue of meters, one a file, and the choice of those that a preset needs."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.probe import Probe
from trimtab.watching.errors import WatchError
from trimtab.watching.meter import Meter
from trimtab.watching.meters.attention import AttentionMeter
from trimtab.watching.meters.gradients import GradientMeter
from trimtab.watching.meters.logits import LogitMeter
from trimtab.watching.meters.matrices import MatrixMeter
from trimtab.watching.meters.noise import NoiseMeter
from trimtab.watching.meters.tables import TableMeter
from trimtab.watching.meters.tensors import TensorMeter
from trimtab.watching.meters.updates import UpdateMeter
from trimtab.watching.meters.weights import WeightMeter
from trimtab.watching.meters.whole_model import ModelMeter
from trimtab.watching.pack import Pack
from trimtab.watching.subject import Subject

METERS: tuple[type[Meter], ...] = (
    TensorMeter,
    LogitMeter,
    AttentionMeter,
    WeightMeter,
    GradientMeter,
    UpdateMeter,
    TableMeter,
    MatrixMeter,
    ModelMeter,
    NoiseMeter,
)
"""The meters of the built-in kinds of probe, in the order of their numbers in a row."""


def meters_for(subject: Subject, pack: Pack) -> list[Meter]:
    """The meters that read the probes of the subject's preset; those that have nothing to read are left out.

    Raises:
        WatchError: if no meter reads a kind of probe, if the subject has nothing that a required probe reads, or if no
            probe reads anything.
    """
    probes = subject.preset.probes
    kinds = _kinds(probes)
    for probe in probes:
        if not any(kind.is_for(probe) for kind in kinds):
            raise WatchError(
                f"no meter reads the probe '{probe.slug}'; let {type(probe).__name__}.meter name the class of one"
            )
    taken = [(kind, kind.takes(probes, subject)) for kind in kinds]
    read = {probe.slug for _, mine in taken for probe in mine}
    name = type(subject.model).__name__
    if missing := sorted(subject.preset.required - read):
        raise WatchError(f"nothing that is watched of {name} can be read by {_listed(missing)}: {_remedy(subject)}")
    if not read:
        raise WatchError(f"no probe of the preset '{subject.preset.name}' reads anything of {name}: {_remedy(subject)}")
    return [kind(subject, mine, pack) for kind, mine in taken if mine]


def _listed(slugs: Sequence[str]) -> str:
    return ("the probe " if len(slugs) == 1 else "the probes ") + ", ".join(f"'{slug}'" for slug in slugs)


def _remedy(subject: Subject) -> str:
    lacks = [
        name
        for name, there in (
            ("no attention", subject.attentions),
            ("no weight", subject.weights),
            ("no tensor", subject.points),
            ("no optimizer", subject.optimizers),
        )
        if not there
    ]
    found = f"it has {', '.join(lacks)} here; " if lacks else ""
    return f"{found}widen `only`, pass the optimizer or a host of the model, or leave the probe out"


def _kinds(probes: Sequence[Probe]) -> list[type[Meter]]:
    named = [probe.meter for probe in probes if probe.meter is not None]
    return list(dict.fromkeys([*METERS, *named]))
