r"""PC Layer: pass the singular values of a weight through a fixed odd polynomial that lifts the small ones.

.. math:: W_{\mathrm{eff}} = \gamma\, s\, g(W / s), \qquad g(M) = M\, p(M^\top M)

Here s is the spectral norm. The singular vectors stay; a singular value :math:`\sigma` becomes
:math:`\gamma s\, g(\sigma/s)`.
The condition number of the effective weight falls, and its spectral norm is at most :math:`1.021\, \gamma s`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.accumulation import Deferred
from trimtab.change import Change
from trimtab.host import Host, Part
from trimtab.intervention import Source, TrainedModelError, WeightRule, is_trained
from trimtab.spectral import SpectralRule

# Coefficients of x, x^3, x^5 ... in g. Those of a level add up to 1: the largest singular value stays.
LEVELS = {
    1: (1.507, -0.507),
    2: (2.083, -1.643, 0.560),
    3: (2.909, -4.649, 4.023, -1.283),
    4: (3.625, -9.261, 14.097, -10.351, 2.890),
}
SMALLEST_NORM = 1e-7


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class PCLayer(WeightRule):
    """Precondition the weights of Proj, FC1 and FC2 by a polynomial of their singular values.

    The function of the model changes when the rule is installed, so it takes a fresh model only. After training
    ``merge`` stores the effective weights as plain weights, without any cost in use.

    Attributes:
        level: degree 2 level + 1 of the polynomial. The authors use 4 with AdamW and 2 with Muon.
        iterations: power iterations for each optimizer step.

    Raises:
        ValueError: if level is not 1 to 4, or iterations is not positive.
    """

    level: Literal[1, 2, 3, 4] = 4
    iterations: int = 10
    source: ClassVar[Source] = Source(
        title="PC Layer: Polynomial Weight Preconditioning for Improving LLM Pre-Training",
        arxiv="2606.06470",
        place="the authors' code",
        equation="W_eff = gamma s g(W / s), g(x) = 3.625 x - 9.261 x^3 + 14.097 x^5 - 10.351 x^7 + 2.890 x^9",
        deviations=(
            "the polynomial is computed in fp32 under autocast too; the authors' in bf16",
            "gamma is 1 from the start and not from the first forward pass, so that it can be saved before",
            "u and v start at the exact singular vectors, and advance on every process alike instead of by a broadcast",
        ),
    )

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(map(str, LEVELS))}, got {self.level}")
        if not 1 <= self.iterations <= 10_000:
            raise ValueError(f"iterations must lie between 1 and 10,000, got {self.iterations}")

    @property
    @override
    def parts(self) -> Sequence[Part]:
        return (Part.PROJ, Part.FC1, Part.FC2)

    @override
    def prepare(self, host: Host) -> Sequence[Change]:
        """Build all changes without altering the model.

        Raises:
            TrainedModelError: if the model has been trained.
        """
        changes = WeightRule.prepare(self, host)
        if is_trained(host):
            raise TrainedModelError(
                "pc_layer changes the function of a model, and this model has been trained; use it on a fresh one"
            )
        return changes

    @override
    def rule(self, weight: Tensor) -> nn.Module:
        return _Preconditioned(weight, self.level, self.iterations)


class _Preconditioned(SpectralRule):
    """The rule of one weight."""

    def __init__(self, weight: Tensor, level: int, iterations: int) -> None:
        super().__init__(weight, iterations)
        self.coefficients = LEVELS[level]
        # One entry and not none, because fully_shard takes no scalar.
        self.gamma = nn.Parameter(torch.ones(1, device=weight.device))
        self._deferred: Deferred | None = None

    def defer(self) -> None:
        weight = self.stored
        if weight is not None and self.training:
            with torch.enable_grad():
                self._deferred = Deferred(self.followed(self._effective(weight)))

    def flush(self) -> None:
        deferred, self._deferred = self._deferred, None
        if deferred is not None:
            deferred.backward()

    @override
    def forward(self, weight: Tensor) -> Tensor:
        if self._deferred is None or not self.training or not torch.is_grad_enabled():
            return self.followed(self._effective(weight))
        return self._deferred.leaf

    def _effective(self, weight: Tensor) -> Tensor:
        u, v = self.vectors(weight)
        with nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False):
            wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
            norm = torch.dot(v.to(wide), wide @ u.to(wide)) + SMALLEST_NORM
            # The factor norm x gamma at the end carries no gradient of the norm, as in the authors' code.
            effective = _polynomial(wide / norm, self.coefficients) * (norm.detach() * self.gamma.to(wide))
        return effective.to(weight.dtype)

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
        """Refuse weights without the state of the rule, whose function would be another one."""
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        if self.weight_is_loaded and prefix + "gamma" not in state_dict:
            errors.append(
                f"{prefix}gamma is missing: the weights were saved without pc_layer, and would be another function "
                "with it; load them into a plain model"
            )


def _polynomial(matrix: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Matrix p(matrix^T matrix), with the smaller of the two Gram matrices and as few products as there can be."""
    tall = matrix.shape[0] >= matrix.shape[1]
    gram = cast(Tensor, _Gram.apply(matrix if tall else matrix.mT))
    size = len(gram)
    first, second, *rest = coefficients
    poly = second * gram
    if rest:
        # p = (a0 + a1 X) + X^2 (a2 + a3 X + a4 X^2): two products in place of Horner's three.
        square = gram @ gram
        inner = rest[0] * torch.eye(size, device=gram.device, dtype=gram.dtype)
        inner = inner + rest[1] * gram if len(rest) > 1 else inner
        inner = inner + rest[2] * square if len(rest) > 2 else inner
        poly = poly + (square @ inner if len(rest) > 1 else rest[0] * square)
    # The constant is applied to the matrix itself: M (a0 + q) = a0 M + M q.
    product = matrix @ poly if tall else poly @ matrix
    return first * matrix + product


class _Gram(torch.autograd.Function):
    """The Gram matrix M^T M, whose backward pass is one product; that of two factors would be two."""

    generate_vmap_rule = True  # for a population of models

    @override
    @staticmethod
    def forward(matrix: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return matrix.mT @ matrix

    @override
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @override
    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (matrix,) = ctx.saved_tensors
        (gradient,) = gradients
        return matrix @ (gradient + gradient.mT)
