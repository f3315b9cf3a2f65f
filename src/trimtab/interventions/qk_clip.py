r"""QK-Clip: shrink the query and key weights of a head whose largest attention score is too large.

.. math:: W_Q^h \leftarrow \gamma^{\alpha} W_Q^h, \qquad W_K^h \leftarrow \gamma^{1 - \alpha} W_K^h, \qquad
          \gamma = \tau / \max(\tau, S_{\max}^h)

After the clip the same batch has a largest score of at most :math:`\tau` in this head. Heads below :math:`\tau` keep
every bit.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from trimtab.change import Factorised, SlotChange
from trimtab.host import AttentionPoint, Host, Part, PartView, Site, SiteUnavailableError
from trimtab.intervention import ConflictError, RunningUpdateRule, Source, Trained, UpdateRule
from trimtab.method import installed_in
from trimtab.sharding import first_row, is_sharded, local
from trimtab.watching.attention import all_scores
from trimtab.watching.seam import OBSERVERS, attention_hook

AFTER_WEIGHTS = (Site.QUERY, Site.KEY, Site.QUERY_ROTATED, Site.KEY_ROTATED)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class QKClip(UpdateRule):
    """Rescale queries and keys of each head after the step, by the largest score of the training batch.

    The score is the scaled product of query and key before any edit or cap, over all micro-batches and processes. Query
    heads that share a key head are scaled alike, by the largest of their scores. Biases are scaled with their weights,
    and so are copies of the weights, such as master weights and averages. Of factorised weights one factor is scaled.

    Attributes:
        threshold: largest score that is tolerated ("tau"), in score units.
        alpha: share of the factor, as a power, that the queries take; the keys take the rest.
        every: steps between two clips; the scores of other steps are not computed.

    Raises:
        ValueError: if a setting is out of its range.
    """

    threshold: float = 100.0
    alpha: float = 0.5
    every: int = 1
    source: ClassVar[Source] = Source(
        title="Kimi K2: Open Agentic Intelligence",
        arxiv="2507.20534",
        place="section 2.1, QK-Clip",
        equation="W_Q <- c^(1/2) W_Q, W_K <- c^(1/2) W_K per head, c = 100 / max(100, S_max)",
        deviations=(
            "for multi-head and grouped-query attention; the paper describes multi-head latent attention",
            "biases of queries and keys are scaled with their weights",
            "a largest score that is not finite, or negative, scales nothing",
        ),
    )

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"threshold must be positive and finite, got {self.threshold}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie between 0 and 1, got {self.alpha}")
        if not 1 <= self.every <= 10**8:
            raise ValueError(f"every must lie between 1 and 100,000,000, got {self.every}")

    @override
    def start(self, trained: Trained) -> RunningUpdateRule:
        if trained.host is None:
            raise SiteUnavailableError(
                f"qk_clip scales query and key weights, and no host knows this "
                f"{type(trained.model).__name__}; see docs/hosts.md"
            )
        _refuse_normalised(trained.host)
        return _Clip(self, trained, trained.host)


class _Clip(RunningUpdateRule):
    """Watches the scores of the training passes, and scales rows of weights after the step."""

    traced = False  # of an observer of attention

    def __init__(self, config: QKClip, trained: Trained, host: Host) -> None:
        self.config = config
        self.model = trained.model
        self.points = host.find_attentions()
        device = next(iter(trained.parameters.values())).device
        self.shapes = [_heads_of(host, point) for point in self.points]
        self.maxima = [torch.full((heads,), -torch.inf, device=device) for heads, _ in self.shapes]
        self.rows = _scaled_rows(host, self.points, self.shapes, trained)
        self.reads = 1 % config.every == 0
        self._number = -next(_NUMBERS)  # negative: other observers count upwards
        OBSERVERS[self._number] = self
        token = torch.zeros((), device=device)
        self._stops = [
            point.watch(functools.partial(attention_hook, token, self._number, index))
            for index, point in enumerate(self.points)
        ]

    def see_attention(self, index: int, q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> None:
        if not self.reads or not self.model.training:
            return
        bare = AttentionPoint(None, None, _no_watcher)
        for scores in all_scores(bare, q, k, mask, scale):
            torch.maximum(self.maxima[index], scores.amax((0, 2, 3)).to(self.maxima[index]), out=self.maxima[index])

    @override
    @torch.no_grad()
    def __call__(self, step: int, parameters: Mapping[str, nn.Parameter]) -> None:
        if self.reads:
            packed = torch.cat(self.maxima)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(packed, op=dist.ReduceOp.MAX)
            each = zip(self._split(packed), self.shapes, strict=True)
            # The last factor belongs to all other rows.
            scales = torch.cat((*(self._scales(x, *shape) for x, shape in each), packed.new_ones(1)))
            for rows in self.rows:
                rows.multiply(scales)
            for maxima in self.maxima:
                maxima.fill_(-torch.inf)
        self.reads = (step + 1) % self.config.every == 0

    def _split(self, packed: Tensor) -> Sequence[Tensor]:
        return packed.split([heads for heads, _ in self.shapes])

    def _scales(self, maxima: Tensor, heads: int, key_heads: int) -> Tensor:
        """Factors of the query heads, then of the key heads."""
        largest = maxima.view(key_heads, heads // key_heads).amax(1)
        # Clamped from below: a negative maximum would make the factor negative, and its root NaN.
        factor = self.config.threshold / largest.nan_to_num(posinf=0.0).clamp(min=self.config.threshold)
        queries = factor**self.config.alpha
        return torch.cat((queries.repeat_interleave(heads // key_heads), factor ** (1 - self.config.alpha)))

    @override
    def state_dict(self) -> dict[str, object]:
        return {"reads": self.reads}

    @override
    def load_state_dict(self, state: dict[str, object]) -> None:
        if set(state) != {"reads"}:
            raise ValueError(f"qk_clip: the state must have 'reads'; it has {sorted(state)}")
        self.reads = bool(state["reads"])
        for maxima in self.maxima:
            maxima.fill_(-torch.inf)

    @override
    def remove(self) -> None:
        for stop in self._stops:
            stop()
        self._stops = []
        OBSERVERS.pop(self._number, None)


_NUMBERS = itertools.count(1)


def _no_watcher(_: Any) -> Any:
    raise AssertionError("a point that only names edits cannot be watched")


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """A tensor whose rows, along one dimension, are scaled.

    Attributes:
        index: for each row the index of its factor; the last factor is 1.
    """

    tensor: Tensor
    index: Tensor
    dimension: int

    def multiply(self, scales: Tensor) -> None:
        whole = self.tensor.detach()
        held = local(whole)
        index = self.index
        if is_sharded(whole) and any(p.is_shard(self.dimension) for p in cast(Any, whole).placements):
            first = first_row(whole)
            index = index[first : first + held.shape[self.dimension]]
        shape = [1] * held.ndim
        shape[self.dimension] = -1
        held.mul_(scales.to(held.device)[index.to(held.device)].view(shape).to(held.dtype))


def _scaled_rows(
    host: Host, points: Sequence[AttentionPoint], shapes: Sequence[tuple[int, int]], trained: Trained
) -> list[_Rows]:
    """The rows of weights, biases and their copies, with the index of each row's factor."""
    views: dict[tuple[Part, int | None], PartView] = {
        (view.part, view.layer): view for part in (Part.Q, Part.K) for view in host.parts(part)
    }
    ends = list(itertools.accumulate(heads + key_heads for heads, key_heads in shapes))
    rest = ends[-1]
    starts = [0, *ends[:-1]]
    index_of: dict[int, tuple[Tensor, int, Tensor]] = {}  # by the id of a parameter
    for point, (heads, key_heads), start in zip(points, shapes, starts, strict=True):
        for part, count, first in ((Part.Q, heads, start), (Part.K, key_heads, start + heads)):
            view = views[part, point.layer]
            for parameter, dimension, outputs in _row_parameters(view):
                known = index_of.get(id(parameter))
                index = torch.full((len(outputs),), rest) if known is None else known[2]
                wanted = _outputs_of(view)
                position = torch.full((int(max(outputs.max(), wanted.max())) + 1,), -1)
                position[wanted] = torch.arange(len(wanted))
                place = position[outputs]
                head = first + place // (len(wanted) // count)
                index_of[id(parameter)] = (parameter, dimension, torch.where(place >= 0, head, index))
    names = {id(p): name for name, p in trained.model.named_parameters()}
    rows = [_Rows(tensor, index, dimension) for tensor, dimension, index in index_of.values()]
    for copy in trained.copies:
        for number, (_, dimension, index) in index_of.items():
            if names[number] in copy:
                rows.append(_Rows(copy[names[number]], index, dimension))
    return rows


def _row_parameters(view: PartView) -> list[tuple[nn.Parameter, int, Tensor]]:
    """The parameters that make the outputs of a module: (parameter, its dimension of outputs, index of each output)."""
    module = view.module
    bias = cast("nn.Parameter | None", getattr(module, "bias", None))
    if isinstance(module, Factorised):
        found = [(factor, 0, outputs) for factor, outputs in module.output_factors()]
    else:
        weight = cast(nn.Parameter, module.weight)
        found = [(weight, int(view.transposed), torch.arange(weight.shape[int(view.transposed)]))]
    return found if bias is None else [*found, (bias, 0, torch.arange(len(bias)))]


def _outputs_of(view: PartView) -> Tensor:
    """Indices of the outputs of a shared module that belong to this part, head by head."""
    module = view.module
    weight = cast(Tensor, module.weight)
    every = torch.arange(weight.shape[int(view.transposed)])
    return every if view.rows is None else every[view.rows]


def _heads_of(host: Host, point: AttentionPoint) -> tuple[int, int]:
    """Number of query heads and of key heads of a layer."""
    found = {tap.site: tap.num_heads for tap in host.find_taps() if tap.layer == point.layer}
    return found[Site.QUERY_ROTATED], found[Site.KEY_ROTATED]


def _refuse_normalised(host: Host) -> None:
    """Refuse what takes the scale of the weights out of the scores again.

    Raises:
        ConflictError: if queries or keys are edited after their weights, or these weights are computed from others.
    """
    if "qk_norm" in host.built_in:
        raise ConflictError(
            f"qk_clip: {host.family} normalises queries and keys, so the scale of their weights has no effect"
        )
    edited = {id(tap.slot) for tap in host.find_taps() if tap.site in AFTER_WEIGHTS and len(tap.slot) > 0}
    for receipt in installed_in(host.model):
        if any(isinstance(change, SlotChange) and id(change.slot) in edited for change in receipt.changes):
            raise ConflictError(
                f"qk_clip: {receipt.slug} edits queries or keys after their weights, so that scaling the weights "
                "does not scale the scores; use one of the two"
            )
    for part in (Part.Q, Part.K):
        for view in host.parts(part):
            if parametrize.is_parametrized(view.module, "weight"):
                raise ConflictError(
                    f"qk_clip: the weight of {part} is computed from other parameters, so it cannot be scaled; "
                    "remove the method that computes it"
                )
