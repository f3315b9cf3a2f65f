"""How far one optimizer step moves each parameter, and what Adam's second moment says, without a copy for Adam."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from trimtab.probe import AdamProbe
from trimtab.sharding import local
from trimtab.watching.kernels import adam_squares, readable
from trimtab.watching.measure import wide
from trimtab.watching.norms import norms_of

CHUNK = {"cpu": 1 << 16, "cuda": 1 << 24}  # on a CPU the chunks stay in the cache
SMALL = 1 << 18  # entries up to which parameters are taken together
NUM_OWN = 4  # columns of sums before those of Adam probes
MOST_TOGETHER = 1 << 20  # entries taken together: their copies are the memory of a reading


class OptimizerStep:
    """Measures one optimizer step: call ``before`` and ``after`` it.

    For torch's Adam and AdamW the update is computed from the state that the step leaves behind. For any other
    optimizer, and for parameters in half precision, the parameters are copied before a step that is read, which takes
    their memory once more. The groups of a composite optimizer are looked at one by one: those of an Adam part are
    computed from its state, the others are copied.

    Args:
        optimizer: an optimizer; a composite one has an attribute ``parts``, the optimizers whose groups are its own.
        adam_probes: statistics of Adam's second moment.
        fused: whether kernels read what they can; they know no Adam probes.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, adam_probes: Sequence[AdamProbe], *, fused: bool = False
    ) -> None:
        self.optimizer = optimizer
        self.adam_probes = tuple(adam_probes)
        self._by_kernel = fused and not self.adam_probes
        self._copies: dict[int, Tensor] = {}

    def before(self) -> None:
        """Copy the parameters whose update the optimizer's state will not tell."""
        self._copies = {
            id(p): local(p.detach()).clone()
            for group in self.optimizer.param_groups
            for p in group["params"]
            # In half precision a step is partly rounded away: the weight moves less than Adam's state says.
            if p.grad is not None and (not _is_plain_adam(self.optimizer, group) or p.element_size() < 4)
        }

    def after(self) -> dict[int, Moved]:
        """What the step did to each updated parameter, by the id of the parameter."""
        moved_of: dict[int, Moved] = {}
        for group in self.optimizer.param_groups:
            parameters = cast("list[nn.Parameter]", group["params"])
            if _is_plain_adam(self.optimizer, group):
                state = owner_of(self.optimizer, group).state
                stepped = [p for p in parameters if p.grad is not None and state.get(p)]
                of_adam = self._of_adam(stepped, group, state)
                moved_of |= {number: Moved(sums, has_adam=True) for number, sums in of_adam.items()}
            for p in parameters:
                if id(p) in self._copies:
                    now = local(p.detach()).to(wide(p))
                    norms = norms_of([(now - self._copies[id(p)]).nan_to_num(torch.nan, torch.nan, torch.nan), now])
                    squares, counts, lost = norms.to(now.device).unbind(1)
                    nothing = Moved(norms.new_zeros(NUM_OWN + len(self.adam_probes)), has_adam=False)
                    of_adam = moved_of.get(id(p), nothing)
                    own = torch.stack((squares[0], squares[1], counts[0], lost[0]))
                    moved_of[id(p)] = Moved(torch.cat((own, of_adam.sums[NUM_OWN:].to(own))), of_adam.has_adam)
        self._copies = {}
        return moved_of

    def _of_adam(self, parameters: Sequence[nn.Parameter], group: dict[str, Any], states: Any) -> dict[int, Tensor]:
        """All of one group: small ones together in a few fused operations, large ones in chunks that fit the cache."""
        together: list[tuple[nn.Parameter, list[Tensor], _Factors]] = []
        sums_of: dict[int, Tensor] = {}

        def take() -> None:
            sums = self._sums([flat for _, flat, _ in together], [factors for _, _, factors in together], group["eps"])
            sums_of.update({id(p): row for (p, _, _), row in zip(together, sums, strict=True)})
            together.clear()

        for p in parameters:
            state = states[p]
            gradient = p.grad
            assert gradient is not None
            factors = _factors(state["step"], group, wide(p))
            by_kernel = self._of_kernel(p, state, factors, group["eps"])
            if by_kernel is not None:
                sums_of[id(p)] = by_kernel
                continue
            read = (p, gradient, state["exp_avg"], state["exp_avg_sq"])
            flat = [local(x.detach()).reshape(-1) for x in read]
            # A step count on another device cannot become a number without a transfer; fused operations take numbers.
            if flat[0].numel() <= SMALL and not isinstance(factors.share, Tensor):
                together.append((p, flat, factors))
                if sum(tensors[0].numel() for _, tensors, _ in together) > MOST_TOGETHER:
                    take()
                continue
            total = torch.zeros(NUM_OWN + len(self.adam_probes), device=p.device, dtype=wide(p))
            for chunk in zip(*(x.split(CHUNK.get(p.device.type, CHUNK["cuda"])) for x in flat), strict=True):
                total += self._sums([list(chunk)], [factors], group["eps"])[0]
            sums_of[id(p)] = total
        if together:
            take()
        return sums_of

    def _of_kernel(self, p: nn.Parameter, state: dict[str, Any], factors: _Factors, eps: float) -> Tensor | None:
        """A row as in ``Moved.sums``, or None where no kernel can read the tensors or their sums are not finite."""
        if not self._by_kernel:
            return None
        weight, first, second = (local(x.detach()) for x in (p, state["exp_avg"], state["exp_avg_sq"]))
        if not readable(weight, first, second):
            return None
        root = factors.second_correction**-0.5
        moved, weights = adam_squares(weight, first, second, root=root, eps=eps, share=factors.share)
        sums = (moved * factors.scale**2, weights, float(weight.numel()), 0.0)
        return torch.tensor(sums, dtype=torch.float64) if math.isfinite(moved + weights) else None

    def _sums(self, tensors: Sequence[Sequence[Tensor]], factors: Sequence[_Factors], eps: float) -> Tensor:
        """A row as in ``Moved.sums`` for each (weight, gradient, first, second moment)."""
        if tensors[0][0].device.type != "cpu":
            return self._columns([_only_finite(each) for each in tensors], factors, eps)
        sums = self._columns([(each, torch.zeros(())) for each in tensors], factors, eps)
        for row in (~sums.isfinite().all(1)).nonzero().flatten().tolist():
            sums[row] = self._columns([_only_finite(tensors[row])], [factors[row]], eps)[0]
        return sums

    def _columns(
        self, tensors: Sequence[tuple[Sequence[Tensor], Tensor]], factors: Sequence[_Factors], eps: float
    ) -> Tensor:
        """The same, given the number of entries that do not count and are neutral in each tensor."""
        fused = cast(Any, torch)
        weights, gradients, firsts, seconds = (list(column) for column in zip(*(t for t, _ in tensors), strict=True))
        below = fused._foreach_sqrt(seconds)
        fused._foreach_mul_(below, [each.second_correction**-0.5 for each in factors])
        fused._foreach_add_(below, eps)
        moved = fused._foreach_mul(weights, [each.share for each in factors])
        fused._foreach_addcdiv_(moved, firsts, below)
        columns = [_squares(moved), _squares(weights)]
        lost = torch.stack([number for _, number in tensors]).to(columns[0])
        columns += [columns[0].new_tensor([float(len(w)) for w in weights]) - lost, lost]
        for probe in self.adam_probes:
            totals = [
                probe.total(gradient, second / each.second_correction, eps)
                for gradient, second, each in zip(gradients, seconds, factors, strict=True)
            ]
            columns.append(torch.stack(totals).to(columns[0].dtype))
        scales = [each.scale for each in factors]
        if isinstance(scales[0], Tensor):
            columns[0] = columns[0] * torch.stack(scales).square()
        else:
            columns[0] = columns[0] * columns[0].new_tensor([scale**2 for scale in scales])
        return torch.stack(columns, dim=1)


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of squares of each flat tensor, (N,), in float64 where the device has it."""
    if tensors[0].device.type == "cpu":
        return torch.tensor([torch.dot(x, x).item() for x in tensors], dtype=torch.float64)
    dtype = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    return torch.stack(cast(Any, torch)._foreach_norm(list(tensors), 2, dtype=dtype)).square()


def _only_finite(tensors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Weight, gradient and moments with neutral values where one of them is not finite, and the number of such places.

    An infinite second moment moves nothing, and is not below any eps.
    """
    bad = torch.stack([(x - x).nan_to_num_(nan=1.0) for x in tensors]).sum(0) != 0
    neutral = (0.0, 0.0, 0.0, torch.inf)
    return [torch.where(bad, value, x) for x, value in zip(tensors, neutral, strict=True)], bad.sum()


@dataclass(frozen=True, slots=True)
class Moved:
    """What one step did to a parameter.

    Attributes:
        sums: over its entries, (4 + P,): squares of the update, squares of the parameter after it, entries whose update
            is finite, entries whose update is not, which no sum contains, and one sum for each of the P Adam probes.
        has_adam: whether the Adam sums were read; else they are 0.
    """

    sums: Tensor
    has_adam: bool


@dataclass(frozen=True, slots=True)
class _Factors:
    """What turns moments into a step.

    The step is ``-scale (m / (sqrt(v / second_correction) + eps) + share w)``, where w is the weight after it.

    Attributes:
        second_correction: bias correction of the second moment, 1 - beta2^step.
    """

    second_correction: Any
    scale: Any
    share: Any


def _factors(step: Any, group: dict[str, Any], dtype: torch.dtype) -> _Factors:
    beta1, beta2 = group["betas"]
    if isinstance(step, Tensor):
        # Wide, as 1 - beta^step loses digits at the first steps; a number where that costs no transfer.
        step = float(step) if step.device.type == "cpu" else step.to(dtype)
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.device.type == "cpu":
        lr = float(lr)
    rate = lr / (1 - beta1**step)
    decay = lr * group["weight_decay"] if group.get("decoupled_weight_decay", False) else 0.0
    # Only the weight after the step exists now: w = (1 - decay) w_old - rate adam, so the step is
    # w - w_old = -(rate adam + decay w) / (1 - decay).
    return _Factors(1 - beta2**step, rate / (1 - decay), decay / rate if isinstance(lr, Tensor) or lr else 0.0)


def has_moments(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a group follows Adam as torch has it, so that its state tells the update."""
    return any(_is_plain_adam(optimizer, group) for group in optimizer.param_groups)


def owner_of(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> torch.optim.Optimizer:
    """The part of a composite optimizer that steps a group, by the identity of the group; else the optimizer."""
    for part in cast("Sequence[torch.optim.Optimizer]", getattr(optimizer, "parts", ())):
        if any(each is group for each in part.param_groups):
            return owner_of(part, group)
    return optimizer


def _is_plain_adam(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    plain: tuple[Callable[..., Any], ...] = (torch.optim.Adam, torch.optim.AdamW)
    is_adam = type(owner_of(optimizer, group)) in plain
    return is_adam and not group.get("amsgrad") and not group.get("maximize")
