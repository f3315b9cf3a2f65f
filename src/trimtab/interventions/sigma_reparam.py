r"""sigmaReparam: divide each weight by its spectral norm and multiply by a learnable scalar.

.. math:: \hat W = \frac{\gamma}{\sigma(W)} W, \qquad \sigma(W) = v^\top W u

Once power iteration has converged :math:`\lVert \hat W \rVert_2 = |\gamma|`; the gradient is orthogonal to
:math:`W`, so the size of a weight can only be changed on purpose, through one scalar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import Part
from trimtab.intervention import Source, WeightRule


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SigmaReparam(WeightRule):
    """Reparametrise QKV, Proj, FC1 and FC2 by their spectral norm, with one power iteration per training forward."""

    source: ClassVar[Source] = Source(
        title="Stabilizing Transformer Training by Preventing Attention Entropy Collapse",
        arxiv="2303.06296",
        place="method 1 of arXiv 2410.16682",
        equation="W_eff = (gamma / sigma(W)) W, sigma by power iteration",
        deviations=(
            "gamma starts at the spectral norm, so the function is kept; the paper's text has 1",
            "layer norms stay; scope QKV, Proj, FC1, FC2; a fused QKV counts as one matrix",
        ),
    )

    @property
    @override
    def parts(self) -> Sequence[Part]:
        return (Part.Q, Part.K, Part.V, Part.PROJ, Part.FC1, Part.FC2)

    @override
    def rule(self, weight: Tensor) -> nn.Module:
        return _SpectralReparam(weight)


class _SpectralReparam(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        # On the CPU in float64: exact, the same on every device, and done once.
        _, values, right = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
        self.gamma = nn.Parameter(values[0].to(weight.device, torch.float32))
        self.register_buffer("u", right[0].to(weight.device, torch.float32))

    @override
    def forward(self, weight: Tensor) -> Tensor:
        stored = cast(Tensor, self.u)
        u = stored.float()  # the model may have been cast after the method went in
        with torch.no_grad():
            v = F.normalize(weight.detach().float() @ u, dim=0)
            if self.training:
                u = F.normalize(weight.detach().float().T @ v, dim=0)
                stored.copy_(u)
        sigma = torch.dot(v, weight.float() @ u)
        return (self.gamma / sigma).to(weight.dtype) * weight
