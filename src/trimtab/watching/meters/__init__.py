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
        WatchError: if no meter reads a kind of probe.
    """
    probes = subject.preset.probes
    kinds = _kinds(probes)
    for probe in probes:
        if not any(kind.is_for(probe) for kind in kinds):
            raise WatchError(
                f"no meter reads the probe '{probe.slug}'; let {type(probe).__name__}.meter name the class of one"
            )
    taken = [(kind, kind.takes(probes, subject)) for kind in kinds]
    return [kind(subject, mine, pack) for kind, mine in taken if mine]


def _kinds(probes: Sequence[Probe]) -> list[type[Meter]]:
    named = [probe.meter for probe in probes if probe.meter is not None]
    return list(dict.fromkeys([*METERS, *named]))
