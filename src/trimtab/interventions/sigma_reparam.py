r"""sigmaReparam: divide each weight by its spectral norm and multiply by a learnable scalar.

.. math:: \hat W = \frac{\gamma}{\sigma(W)} W, \qquad \sigma(W) = v^\top W u

Once the power iteration has converged, :math:`\lVert \hat W \rVert_2 = |\gamma|`. The gradient is orthogonal to
:math:`W`, so only the scalar changes the spectral norm of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import Part
from trimtab.intervention import Source, WeightRule


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SigmaReparam(WeightRule):
    """Reparametrise QKV, Proj, FC1 and FC2 by their spectral norm, with one power iteration per training forward.

    Attributes:
        gamma: initial value of the learnable scalar. ``spectral_norm``, that of the initial weight, leaves the function
            unchanged, as in the authors' PyTorch code. ``one`` is the value in their paper and JAX code.

    Raises:
        ValueError: if gamma is unknown.
    """

    gamma: Literal["spectral_norm", "one"] = "spectral_norm"
    source: ClassVar[Source] = Source(
        title="Stabilizing Transformer Training by Preventing Attention Entropy Collapse",
        arxiv="2303.06296",
        place="method 1 of arXiv 2410.16682",
        equation="W_eff = (gamma / sigma(W)) W, sigma by power iteration",
        deviations=(
            "gamma starts at the spectral norm by default, so the function is unchanged; in the paper it starts at 1",
            "layer norms are kept; the rule covers QKV, Proj, FC1 and FC2; a fused QKV counts as one matrix",
        ),
    )

    def __post_init__(self) -> None:
        if self.gamma not in ("spectral_norm", "one"):
            raise ValueError(f"gamma must be spectral_norm or one, got {self.gamma!r}")

    @property
    @override
    def parts(self) -> Sequence[Part]:
        return (Part.Q, Part.K, Part.V, Part.PROJ, Part.FC1, Part.FC2)

    @override
    def rule(self, weight: Tensor) -> nn.Module:
        return _SpectralReparam(weight, unit=self.gamma == "one")


class _SpectralReparam(nn.Module):
    def __init__(self, weight: Tensor, *, unit: bool) -> None:
        super().__init__()
        device = weight.device
        # Once, on the CPU in float64: accurate, and equal for every device of the model.
        whole = torch.zeros(weight.shape) if weight.is_meta else weight.detach()
        left, values, right = torch.linalg.svd(whole.double().cpu(), full_matrices=False)
        self.gamma = nn.Parameter(
            values[0].to(device, torch.float32).fill_(1.0) if unit else values[0].float().to(device)
        )
        self.register_buffer("u", right[0].to(device, torch.float32))
        self.register_buffer("v", left[:, 0].contiguous().to(device, torch.float32), persistent=False)

    @override
    def forward(self, weight: Tensor) -> Tensor:
        stored_u, stored_v = cast(Tensor, self.u), cast(Tensor, self.v)
        u, v = stored_u.float(), stored_v.float()  # the model may have been cast after the method was installed
        if not _recomputing():
            with torch.no_grad():
                v = F.normalize(weight.detach().float() @ u, dim=0)
                if self.training:
                    u = F.normalize(weight.detach().float().T @ v, dim=0)
                    stored_u.copy_(u)
                    stored_v.copy_(v)
        sigma = torch.dot(v, weight.float() @ u)
        return (self.gamma / sigma).to(weight.dtype) * weight


def _recomputing() -> bool:
    """Whether an activation checkpoint repeats the forward pass inside backward. The state advances once per step."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
