"""What a reading gathers while the model runs: moments of tensors and gradients, attention, output logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.host import AttentionPoint
from trimtab.probe import (
    NUM_SUMS,
    AttentionProbe,
    LogitProbe,
    Moments,
    Preset,
    TensorProbe,
    measure,
    measure_rows,
    sample_rows,
)
from trimtab.watching.attention import query_rows
from trimtab.watching.pack import Pack
from trimtab.watching.parameters import Key

LARGE = 1 << 18  # entries from which a tensor is measured by itself
MOST_WAITING = 4 << 20  # bytes of samples held back


@dataclass(frozen=True, slots=True)
class Reading:
    """Numbers that belong together, on the device.

    Attributes:
        names: metric keys.
        values: (N,).
        counts: (N,), what each value was taken from; 0 means there is none.
    """

    names: Sequence[str]
    values: Tensor
    counts: Tensor


def metric(key: Key, slug: str) -> str:
    """What / where / statistic."""
    return f"{key[0]}/{key[1]}/{slug}"


class TensorMeter:
    """One row of moments per key, filled by every micro-batch; heads of attention; rows of logits."""

    def __init__(
        self, keys: Sequence[Key], attentions: Sequence[AttentionPoint], preset: Preset, pack: Pack, logits: Key | None
    ) -> None:
        self.keys, self.attentions, self.preset, self.pack = tuple(keys), tuple(attentions), preset, pack
        self.statistics = [probe for probe in preset.probes if isinstance(probe, TensorProbe)]
        self.forget()
        self.high = any(probe.high for probe in self.statistics)
        self.of_heads = [probe for probe in preset.probes if isinstance(probe, AttentionProbe)] if attentions else []
        self.of_logits = [probe for probe in preset.probes if isinstance(probe, LogitProbe)] if logits else []
        self.logits_row = self.keys.index(logits) if logits else -1
        pack.add("moments", (len(keys), NUM_SUMS))
        pack.add("largest", (len(keys),), "max")
        pack.add("logits", (len(self.of_logits), 3))  # sum of the finite, how many, how many there were
        for probe in self.of_heads:
            for index, point in enumerate(self.attentions):
                if probe.merge == "max":
                    pack.add(f"{probe.slug}/{index}", (point.num_heads,), "max", rest=-torch.inf)
                else:
                    pack.add(f"{probe.slug}/{index}", (2, point.num_heads))

    def see(self, row: int, x: Tensor) -> None:
        """Add one tensor to its row."""
        looked_at = sample_rows(x, self.preset.rows)
        self._add(row, looked_at, x)
        if row == self.logits_row:
            place = self.pack["logits"]
            for index, probe in enumerate(self.of_logits):
                values = probe.rows(looked_at).to(place.dtype)
                sound = values.isfinite()
                counts = torch.stack((sound.sum(), (sound | True).sum())).to(place.dtype)
                place[index] += torch.cat((torch.where(sound, values, 0.0).sum()[None], counts))

    def see_gradient(self, row: int, x: Tensor) -> None:
        """Add one gradient to its row."""
        self._add(row, sample_rows(x, self.preset.rows), x)

    def _add(self, row: int, looked_at: Tensor, x: Tensor) -> None:
        # Small samples wait and are measured together with others of their size: one by one, starting each of a dozen
        # operations takes longer than the operations.
        if looked_at.numel() > LARGE:
            self._fill([row], measure(looked_at, high=self.high)[None], [x.numel()])
            return
        mine = looked_at if looked_at.numel() < x.numel() else looked_at.clone()  # the model may change it in place
        self._waiting.setdefault((mine.numel(), mine.dtype), []).append((row, mine.reshape(-1), x.numel()))
        self._waiting_bytes += mine.numel() * mine.element_size()
        if self._waiting_bytes > MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Measure what waits."""
        for group in self._waiting.values():
            rows, tensors, entries = (list(column) for column in zip(*group, strict=True))
            self._fill(rows, measure_rows(torch.stack(tensors), high=self.high), entries)
        self.forget()

    def forget(self) -> None:
        """Drop what waits."""
        self._waiting: dict[tuple[int, torch.dtype], list[tuple[int, Tensor, int]]] = {}
        self._waiting_bytes = 0

    def _fill(self, rows: list[int], found: Tensor, entries: list[int]) -> None:
        moments, largest = self.pack["moments"], self.pack["largest"]
        index = torch.tensor(rows, device=moments.device)
        found[:, 1] = torch.tensor(entries, dtype=found.dtype, device=found.device)
        moments.index_add_(0, index, found[:, :NUM_SUMS])
        largest.scatter_reduce_(0, index, found[:, NUM_SUMS], "amax")

    def see_attention(self, index: int, q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> None:
        """Add the sampled query rows of one attention layer."""
        point = self.attentions[index]
        for scores, visible, weights in query_rows(point, q, k, mask, scale, self.preset.query_rows):
            # A row that sees a single key has no choice: its entropy is 0 whatever the model does.
            counts = visible.sum(-1) > 1
            for probe in self.of_heads:
                values, place = probe.rows(scores, visible, weights), self.pack[f"{probe.slug}/{index}"]
                if probe.merge == "max":
                    place.copy_(torch.maximum(place, values.amax((0, 2)).to(place.dtype)))
                else:
                    kept = torch.where(counts, values, 0.0).sum((0, 2), dtype=place.dtype)
                    place += torch.stack((kept, counts.sum((0, 2)).to(place.dtype)))

    def seen(self) -> Tensor:
        """Entries looked at per row, finite or not, (N,)."""
        moments = self.pack["moments"]
        return moments[:, 0] + moments[:, 2]

    def values(self) -> list[Reading]:
        """Statistics by metric key."""
        moments, seen = Moments.of(self.pack["moments"], self.pack["largest"]), self.seen()
        found = [
            Reading([metric(key, probe.slug) for key in self.keys], probe.value(moments), seen)
            for probe in self.statistics
        ]
        for index, probe in enumerate(self.of_logits):
            total, sound, count = self.pack["logits"][index, None].unbind(1)
            found.append(Reading([metric(self.keys[self.logits_row], probe.slug)], total / sound, count))
        for probe in self.of_heads:
            for index, point in enumerate(self.attentions):
                place = self.pack[f"{probe.slug}/{index}"]
                names = [f"attention/layer.{point.layer}.head.{head}/{probe.slug}" for head in range(point.num_heads)]
                if probe.merge == "max":
                    found.append(Reading(names, place, place != -torch.inf))
                else:
                    found.append(Reading(names, place[0] / place[1], place[1]))
        return found
