"""Statistics of attention per head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from trimtab.probe import AttentionProbe, Probe
from trimtab.watching.attention import query_rows
from trimtab.watching.meter import Meter, Reading
from trimtab.watching.metric import MetricKey, where_of
from trimtab.watching.pack import Pack
from trimtab.watching.subject import Subject


class AttentionMeter(Meter):
    """Computes explicit attention for the sampled query rows of each layer, and merges one number per row and head."""

    name: ClassVar[str] = "attention"
    serves: ClassVar[tuple[type[Probe], ...]] = (AttentionProbe,)
    sees_attention: ClassVar[bool] = True

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.statistics = [probe for probe in probes if isinstance(probe, AttentionProbe)]
        for probe in self.statistics:
            for index, point in enumerate(subject.attentions):
                if probe.merge == "max":
                    self.reserve(f"{probe.slug}/{index}", (point.num_heads,), "max", rest=-torch.inf)
                else:
                    self.reserve(f"{probe.slug}/{index}", (2, point.num_heads))  # sums, and counts of rows

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        return super().takes(probes, subject) if subject.attentions else ()

    @override
    def see_attention(self, index: int, q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> None:
        point = self.subject.attentions[index]
        for scores, visible, weights in query_rows(point, q, k, mask, scale, self.subject.preset.query_rows):
            # A row that sees a single key has no choice: its entropy is 0 whatever the model does.
            has_choice = visible.sum(-1) > 1
            for probe in self.statistics:
                numbers = probe.rows(scores, visible, weights)
                merged = self.region(f"{probe.slug}/{index}")
                if probe.merge == "max":
                    merged.copy_(torch.maximum(merged, numbers.amax((0, 2)).to(merged.dtype)))
                else:
                    total = torch.where(has_choice, numbers, 0.0).sum((0, 2), dtype=merged.dtype)
                    merged += torch.stack((total, has_choice.sum((0, 2)).to(merged.dtype)))

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        readings: list[Reading] = []
        for probe in self.statistics:
            for index, point in enumerate(self.subject.attentions):
                merged = self.region(f"{probe.slug}/{index}")
                places = [where_of(point.layer, head) for head in range(point.num_heads)]
                keys = [MetricKey("attention", where, probe.slug) for where in places]
                if probe.merge == "max":
                    readings.append(Reading(keys, merged, merged != -torch.inf))
                else:
                    readings.append(Reading(keys, merged[0] / merged[1], merged[1]))
        return readings
