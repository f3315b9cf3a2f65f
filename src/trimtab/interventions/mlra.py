r"""Multi-head low-rank attention (MLRA): each of the query, key and value projections is a product of two factors.

.. math:: W_Q = U_Q D_Q, \quad W_K = U_K D_K, \quad W_V = U_V D_V, \qquad
    U \in \mathbb R^{D \times r},\ D \in \mathbb R^{r \times D}

The rank of each projection is at most :math:`r`. With :math:`r = D/2` the parameters and FLOPs are as many as
in plain attention.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.change import Change, SwapChange
from trimtab.host import Host, Part, PartView
from trimtab.intervention import ModuleSwap, Source, TrainedModelError, is_trained

_Piece = tuple[nn.Linear, nn.Linear | None]  # the factors U and D, or a plain matrix and None
GPT2_STD = 0.02
INITS = ("gpt2", "variance_matched")
PARTS = (Part.Q, Part.K, Part.V)


class RankLossWarning(UserWarning):
    """A trained projection was approximated at a lower rank; the message says how much of it was lost."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class MLRA(ModuleSwap):
    """Factorise the projections of queries, keys and values; the output projection keeps its full rank.

    Attributes:
        rank: inner width of each product ("r"). 0 selects the rank at which the factors have as many parameters as the
            matrix they replace: half of the model width for a square projection.
        init: initial values of the factors of a fresh model. ``gpt2`` draws both with a standard deviation of 0.02, so
            that the product is far smaller than a plain matrix. ``variance_matched`` draws them so that the product
            has the standard deviation of the matrix it replaces.
        down: ``separate`` gives queries, keys and values a down-projection D each; ``shared`` gives them a common one.
        projections: the projections that are factorised; the others stay plain.
        trained: treatment of a trained model. ``refuse`` raises ``TrainedModelError``. ``factorise`` truncates the
            singular value decomposition of each projection, with a ``RankLossWarning`` that gives the loss.

    Raises:
        ValueError: if a setting is unknown, rank is negative, or ``shared`` is combined with ``factorise``.
    """

    rank: int = 0
    init: Literal["gpt2", "variance_matched"] = "gpt2"
    down: Literal["separate", "shared"] = "separate"
    projections: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")
    trained: Literal["refuse", "factorise"] = "refuse"
    initial_fields: ClassVar[frozenset[str]] = frozenset({"init", "trained"})
    source: ClassVar[Source] = Source(
        title="Stable Language Model Pre-training by Reducing Embedding Variability",
        arxiv="2409.07787",
        place="Multi-head Low-Rank Attention; not the method of arXiv 2603.02188 of the same name",
        equation="W_Q = U_Q D_Q, W_K = U_K D_K, W_V = U_V D_V, rank r = D / 2",
        deviations=(
            "the paper's rank and initial weights are unknown to us: half of the width, and GPT-2's for both factors",
            "with grouped queries the rank of K and V is that of equal size, D D_kv / (D + D_kv)",
            "factors are not shared; a bias of the family is added after the product",
            "the output projection keeps its full rank",
        ),
    )

    def __post_init__(self) -> None:
        choices = (("init", INITS), ("down", ("separate", "shared")), ("trained", ("refuse", "factorise")))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.rank < 0:
            raise ValueError(f"rank must not be negative, got {self.rank}")
        named = set(self.projections)
        if not named or not named <= set(PARTS) or len(named) < len(self.projections):
            raise ValueError(
                f"projections must be distinct names out of q, k and v, at least one, got {list(self.projections)}"
            )
        if self.down == "shared" and self.trained == "factorise":
            raise ValueError("down = 'shared' cannot be combined with trained = 'factorise'; use down = 'separate'")

    @property
    @override
    def parts(self) -> Sequence[Part]:
        return PARTS  # all three, because a fused QKV is one module

    @override
    def prepare(self, host: Host) -> Sequence[Change]:
        trained = is_trained(host)
        if trained and self.trained == "refuse":
            raise TrainedModelError(
                "mlra draws new factors, and this model has been trained; use it on a fresh one, or set trained to "
                "'factorise', which keeps the best approximation of each projection"
            )
        layers: dict[int | None, list[PartView]] = {}
        for part in PARTS:
            for view in host.parts(part):
                layers.setdefault(view.layer, []).append(view)
        kept: list[float] = []
        changes = [change for views in layers.values() for change in self._layer(views, trained, kept)]
        if kept:
            warnings.warn(
                f"mlra: the factors keep {min(kept):.1%} to {max(kept):.1%} of the squared norm of each projection; "
                "the rest is lost",
                RankLossWarning,
                stacklevel=2,
            )
        return changes

    @override
    def replacement(self, views: Sequence[PartView]) -> nn.Module:
        return _Product(views, [self._piece(view, None, trained=False, kept=[]) for view in views])

    def _layer(self, views: Sequence[PartView], trained: bool, kept: list[float]) -> list[Change]:
        chosen = [view for view in views if view.part in self.projections]
        common: nn.Linear | None = None
        if self.down == "shared":
            first = chosen[0].weight
            num_in = first.shape[1]
            rank = self.rank or _parity(num_in, sum(view.weight.shape[0] for view in chosen))
            if rank > num_in:
                raise ValueError(f"mlra: rank {rank} is more than the input width {num_in} of the projections")
            common = _drawn(rank, num_in, self._std(first, rank), first)
        modules: dict[int, list[PartView]] = {}
        for view in views:
            modules.setdefault(id(view.module), []).append(view)
        return [
            SwapChange(
                group[0], _Product(group, [self._piece(view, common, trained, kept) for view in group]), group[0].module
            )
            for group in modules.values()
            if any(view in chosen for view in group)
        ]

    def _piece(self, view: PartView, common: nn.Linear | None, trained: bool, kept: list[float]) -> _Piece:
        weight = view.weight.detach()
        if view.part not in self.projections:
            return _linear(weight), None
        num_out, num_in = weight.shape
        rank = common.out_features if common is not None else self.rank or _parity(num_in, num_out)
        if common is None and rank > min(num_in, num_out):
            raise ValueError(
                f"mlra: rank {rank} is more than the full rank of {view.part}, a matrix of {num_out} x {num_in}"
            )
        if trained:
            left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
            root = values[:rank].sqrt()
            kept.append(float(values[:rank].square().sum() / values.square().sum()))
            return _linear((left[:, :rank] * root).to(weight)), _linear((root[:, None] * right[:rank]).to(weight))
        std = self._std(weight, rank)
        return _drawn(num_out, rank, std, weight), common or _drawn(rank, num_in, std, weight)

    def _std(self, weight: Tensor, rank: int) -> float:
        if self.init == "gpt2" or weight.is_meta:
            return GPT2_STD
        # An entry is a sum of r products of two factors, so its variance is r s^4.
        return math.sqrt(float(weight.detach().float().std(correction=0)) / math.sqrt(rank))


class _Product(nn.Module):
    """Replaces the projections that one module held: maps x (..., D) to their outputs, in the order of the family."""

    def __init__(self, views: Sequence[PartView], pieces: Sequence[_Piece]) -> None:
        super().__init__()
        self.up = nn.ModuleList(up for up, _ in pieces)
        distinct = list({id(down): down for _, down in pieces if down is not None}.values())
        self.down = nn.ModuleList(distinct)
        self.source = [next((i for i, d in enumerate(distinct) if d is down), -1) for _, down in pieces]
        self.bias = cast("nn.Parameter | None", getattr(views[0].module, "bias", None))
        self.transposed = views[0].transposed
        # Attributes of nn.Linear, which some families read.
        self.in_features = self.down[0].in_features
        self.out_features = sum(cast(nn.Linear, up).out_features for up in self.up)
        self.order: Tensor | None
        self.register_buffer("order", _order(views), persistent=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        narrow = [down(x) for down in self.down]
        y = torch.cat([up(x if i < 0 else narrow[i]) for up, i in zip(self.up, self.source, strict=True)], dim=-1)
        if self.order is not None:
            y = y.index_select(-1, self.order)
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> Tensor:
        """The product of the factors, in the layout of the replaced matrix."""
        factors = zip(cast("Sequence[nn.Linear]", self.up), self.source, strict=True)
        rows = torch.cat([up.weight if i < 0 else up.weight @ cast(Tensor, self.down[i].weight) for up, i in factors])
        rows = rows if self.order is None else rows[self.order]
        return rows.mT if self.transposed else rows

    @override
    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        """Refuse whole weights: factors of this rank cannot stand for them."""
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        if f"{prefix}weight" in state_dict and not any(key.startswith(f"{prefix}up.") for key in state_dict):
            errors.append(
                f"{prefix}weight was saved without mlra, and no factors can be made from it; load it into a plain "
                "model and install mlra afterwards"
            )

    def effective_weight(self) -> Tensor:
        return self.weight.detach()

    def effective_bias(self) -> Tensor | None:
        return None  # the bias still belongs to the family, so there is nothing to merge

    def output_factors(self) -> Sequence[tuple[nn.Parameter, Tensor]]:
        numbers = torch.arange(self.out_features, device="cpu")
        places = numbers if self.order is None else self.order.cpu().argsort()
        ups = [cast(nn.Parameter, up.weight) for up in self.up]
        return list(zip(ups, places.split([len(up) for up in ups]), strict=True))


def _order(views: Sequence[PartView]) -> Tensor | None:
    """Index of each output row of the family's matrix in the concatenated pieces; None if the order is the same."""
    if len(views) == 1:
        return None
    total = sum(view.weight.shape[0] for view in views)
    numbers = torch.arange(total, device="cpu")  # on the CPU even if the model is on the meta device
    rows = torch.cat([numbers[view.rows] for view in views])
    return None if torch.equal(rows, numbers) else rows.argsort().to(views[0].weight.device)


def _parity(num_in: int, num_out: int) -> int:
    """The rank at which two factors have as many entries as the matrix."""
    return max(1, num_in * num_out // (num_in + num_out))


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    return linear


def _drawn(num_out: int, num_in: int, std: float, like: Tensor) -> nn.Linear:
    return _linear((torch.randn(num_out, num_in, device=like.device, dtype=torch.float32) * std).to(like.dtype))
