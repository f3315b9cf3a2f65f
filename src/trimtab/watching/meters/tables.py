"""Statistics of tables of token vectors: the embedding and the output head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from typing_extensions import override

from trimtab.probe import Probe, TableProbe
from trimtab.sharding import first_row, local
from trimtab.watching.meter import Meter, Reading
from trimtab.watching.pack import Pack
from trimtab.watching.parameters import Weight
from trimtab.watching.subject import Subject

ROWS_AT_A_TIME = 4096


class TableMeter(Meter):
    """Reads one number per token; processes that hold different rows fill different places of the pack."""

    name: ClassVar[str] = "tables"
    serves: ClassVar[tuple[type[Probe], ...]] = (TableProbe,)

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.statistics = [probe for probe in probes if isinstance(probe, TableProbe)]
        self.tables = _tables(subject)
        for table in self.tables:
            for probe in self.statistics:
                self.reserve(f"{table.place}/{probe.slug}", (table.effective().shape[0],))

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        return super().takes(probes, subject) if _tables(subject) else ()

    @override
    def after_step(self) -> None:
        for table in self.tables:
            weight = table.effective()
            if self.subject.ranks.share(weight) == 0:
                continue  # another process has the same rows
            rows = local(weight)
            first = first_row(weight)
            for probe in self.statistics:
                numbers = self.region(f"{table.place}/{probe.slug}")
                for start in range(0, len(rows), ROWS_AT_A_TIME):
                    piece = probe.rows(rows[start : start + ROWS_AT_A_TIME]).to(numbers.dtype)
                    begin = first + start
                    numbers[begin : begin + len(piece)] = piece

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        readings: list[Reading] = []
        for table in self.tables:
            for probe in self.statistics:
                statistics = probe.values(self.region(f"{table.place}/{probe.slug}"))
                values = torch.stack(list(statistics.values()))
                keys = [table.place.metric(name) for name in statistics]
                readings.append(Reading(keys, values, torch.ones_like(values)))
        return readings


def _tables(subject: Subject) -> list[Weight]:
    return [weight for weight in subject.weights if weight.place.what in ("embedding_weight", "head_weight")]
