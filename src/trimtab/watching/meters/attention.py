"""Statistics of attention per head: means over sampled query positions, and maxima over all of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from trimtab.host import AttentionPoint
from trimtab.probe import AttentionProbe, Probe, ScoreProbe
from trimtab.watching.attention import all_scores, causal_rows, products, query_rows
from trimtab.watching.meter import Guard, Meter, Reading
from trimtab.watching.metric import MetricKey, head_of
from trimtab.watching.pack import Pack
from trimtab.watching.sampling import NUM_SUMS, Sample, Sampler, estimate, sums_of
from trimtab.watching.subject import Subject

MOST_WAITING = 1 << 22  # products that are kept for later, over all layers: 16 MB in single precision
MOST_HEADS = 128  # of a layer whose number of heads is not known before its first call


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Products BHRS of the queries of a sample with all keys of a layer.

    Attributes:
        index: of the layer in ``subject.attentions``.
        sample: the query positions that are looked at.
        products: of queries and keys, not scaled.
        scale: factor of the scores.
        length: number of all query positions.
    """

    index: int
    sample: Sample
    products: Tensor
    scale: float
    length: int


class AttentionMeter(Meter):
    """Computes explicit attention in blocks of query rows, and merges one number per row and head."""

    name: ClassVar[str] = "attention"
    serves: ClassVar[tuple[type[Probe], ...]] = (AttentionProbe, ScoreProbe)
    sees_attention: ClassVar[bool] = True

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        sampled = [probe for probe in probes if isinstance(probe, AttentionProbe)]
        self.means = [probe for probe in sampled if probe.merge == "mean"]
        self.sampled_maxima = [probe for probe in sampled if probe.merge == "max"]
        self.maxima = [probe for probe in probes if isinstance(probe, ScoreProbe)]
        self._checked = subject.preset.summary is not None  # a summary does not keep the layers apart
        self.sampler = Sampler(lambda: subject.ranks.rank)
        self._waiting: list[_Waiting] = []
        for index, (_, point) in enumerate(subject.attentions):
            heads = point.num_heads or MOST_HEADS
            self.reserve(f"seen/{index}", (heads,))
            self.reserve(f"non_finite/{index}", (1,))
            for probe in self.means:
                self.reserve(f"{probe.slug}/{index}", (NUM_SUMS, heads))
            for probe in (*self.sampled_maxima, *self.maxima):
                self.reserve(f"{probe.slug}/{index}", (heads,), "max", rest=-torch.inf)

    @override
    def begin(self, guard: Guard) -> Sequence[object]:
        self._waiting = []
        return ()

    @override
    @classmethod
    def takes(cls, probes: Sequence[Probe], subject: Subject) -> Sequence[Probe]:
        return super().takes(probes, subject) if subject.attentions else ()

    @override
    def see_attention(self, index: int, q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> None:
        _, point = self.subject.attentions[index]
        heads = q.shape[1]
        if heads > (point.num_heads or MOST_HEADS):
            raise ValueError(f"attention with {heads} heads; at most {point.num_heads or MOST_HEADS} are read")
        self.region(f"seen/{index}")[:heads] += 1
        valid = self.subject.padding.rows_of(q[:, 0])
        if self.means or self.sampled_maxima:
            wanted = self.subject.preset.query_rows
            sample = self.sampler.draw(len(q), q.shape[2], wanted, valid, q.device)
            if self._can_wait(point, q, k, mask, sample):
                self._waiting.append(_Waiting(index, sample, products(q, k, sample.rows), scale, q.shape[2]))
                if sum(each.products.numel() for each in self._waiting) > MOST_WAITING:
                    self._catch_up()
            else:
                self._see_sample(index, sample, query_rows(point, q, k, mask, scale, sample.rows))
        if self.maxima:
            for scores in all_scores(point, q, k, mask, scale, valid):
                for probe in self.maxima:
                    _raise(self.region(f"{probe.slug}/{index}"), probe.rows(scores).amax((0, 2)))

    def _can_wait(self, point: AttentionPoint, q: Tensor, k: Tensor, mask: Tensor | None, sample: Sample) -> bool:
        """Whether all that is left to do with the products can be done at the end of the step."""
        # A mask may be overwritten, and an edit may act differently by then; a tensor of the inference mode is frozen.
        if mask is not None or point.scores.active or point.weights.active or torch.is_inference_mode_enabled():
            return False
        return sample.rows.numel() * q.shape[1] * k.shape[2] <= MOST_WAITING

    @override
    def after_step(self) -> None:
        self._catch_up()

    def _catch_up(self) -> None:
        # Between two matrix products each of the many small operations starts from cold caches; at the end of a step
        # they do not.
        waiting, self._waiting = self._waiting, []  # an entry that fails is not taken again
        errors: list[Exception] = []
        for each in waiting:
            _, point = self.subject.attentions[each.index]
            blocks = causal_rows(point, each.products, each.scale, each.sample.rows, each.length)
            try:
                self._see_sample(each.index, each.sample, list(blocks))
            except Exception as error:  # of a probe; the other layers are read
                errors.append(error)
        if errors:
            raise errors[0]

    def _see_sample(self, index: int, sample: Sample, blocks: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        numbers_of: dict[str, list[Tensor]] = {probe.slug: [] for probe in (*self.means, *self.sampled_maxima)}
        choices: list[Tensor] = []
        for scores, visible, weights in blocks:
            # A row that sees a single key has no choice: its entropy is 0 whatever the model does.
            choices.append(visible.sum(-1) > 1)
            for probe in (*self.means, *self.sampled_maxima):
                numbers_of[probe.slug].append(probe.rows(scores, visible, weights))
        has_choice = torch.cat(choices, 2) & (sample.weights > 0)[:, None]
        lost = torch.zeros_like(has_choice)
        for probe in self.means:
            numbers = torch.cat(numbers_of[probe.slug], 2)
            counted = has_choice & numbers.isfinite()
            lost |= has_choice & ~counted
            sums = sums_of(torch.where(counted, numbers, 0.0), counted, sample)
            self.region(f"{probe.slug}/{index}")[:, : sums.shape[1]] += sums
        self.region(f"non_finite/{index}").add_(lost.sum())
        for probe in self.sampled_maxima:
            numbers = torch.cat(numbers_of[probe.slug], 2)
            known = (sample.weights > 0)[:, None] & numbers.isfinite()
            _raise(self.region(f"{probe.slug}/{index}"), torch.where(known, numbers, -torch.inf).amax((0, 2)))

    @override
    def published(self, row: Mapping[str, float]) -> None:
        """Warn of layers that were found and did not compute attention as it was expected of them."""
        if self._checked:
            return
        self._checked = True
        places = [str(place) for place, _ in self.subject.attentions]
        seen = {str(MetricKey.parse(key).without_head.place) for key in row if key.startswith("attention/")}
        unseen = [place for place in places if place not in seen]
        if unseen:
            warnings.warn(
                f"trimtab: no attention passed {', '.join(unseen[:3])}: there is no reading of it", stacklevel=2
            )

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        readings: list[Reading] = []
        for index, (place, point) in enumerate(self.subject.attentions):
            heads = [head_of(place, head) for head in range(point.num_heads or MOST_HEADS)]
            seen = self.region(f"seen/{index}")
            for probe in self.means:
                mean, error, count = estimate(self.region(f"{probe.slug}/{index}"))
                readings.append(Reading([head.metric(probe.slug) for head in heads], mean, count))
                readings.append(Reading([head.metric(f"{probe.slug}_se") for head in heads], error, count))
            if self.means:
                lost = self.region(f"non_finite/{index}")
                readings.append(Reading([place.metric("non_finite_rows")], lost, seen[:1]))
            for probe in (*self.sampled_maxima, *self.maxima):
                largest = self.region(f"{probe.slug}/{index}")
                values = torch.where(largest == -torch.inf, torch.nan, largest)
                readings.append(Reading([head.metric(probe.slug) for head in heads], values, seen))
        return readings


def _raise(region: Tensor, numbers: Tensor) -> None:
    kept = region[: len(numbers)]
    kept.copy_(torch.maximum(kept, numbers.to(region.dtype)))
