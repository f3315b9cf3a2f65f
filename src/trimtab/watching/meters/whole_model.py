"""Statistics of all weights of a model together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from typing_extensions import override

from trimtab.probe import ModelProbe, Probe
from trimtab.sharding import is_sharded
from trimtab.watching.meter import Meter, Reading
from trimtab.watching.metric import Place


class ModelMeter(Meter):
    """Reads all weight matrices and all biases; every process has them whole, so nothing is merged."""

    name: ClassVar[str] = "model"
    serves: ClassVar[tuple[type[Probe], ...]] = (ModelProbe,)

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        """The statistics of matrices and of biases.

        Raises:
            ValueError: for sharded parameters, which no process holds whole.
        """
        parameters = [(name, p.detach()) for name, p in self.subject.model.named_parameters()]
        if any(is_sharded(p) for _, p in parameters):
            raise ValueError("statistics of all weights cannot be read under fully_shard: leave the probe out")
        matrices = [p for _, p in parameters if p.ndim == 2]
        biases = [p for name, p in parameters if name.rsplit(".", 1)[-1] == "bias"]
        readings: list[Reading] = []
        for probe in self.probes:
            assert isinstance(probe, ModelProbe)
            for what, statistics in zip(("weights", "biases"), probe.values(matrices, biases), strict=True):
                if statistics:
                    place = Place(f"all_{what}", "model")
                    values = torch.stack(list(statistics.values()))
                    keys = [place.metric(name) for name in statistics]
                    readings.append(Reading(keys, values, torch.ones_like(values)))
        return readings
