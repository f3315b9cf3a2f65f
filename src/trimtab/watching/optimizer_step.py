"""How far one optimizer step moves each parameter, and what Adam's second moment says, without a copy for Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from trimtab.probe import AdamProbe, sample_rows, wide
from trimtab.watching.norms import squares
from trimtab.watching.sharding import local

CHUNK = {"cpu": 1 << 16, "cuda": 1 << 24}  # on a CPU the chunks stay in the cache
SMALL = 1 << 18  # entries up to which parameters are taken together
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
        num_rows: rows of a matrix that are looked at; the sums are scaled up to all rows. None looks at all.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, adam_probes: Sequence[AdamProbe], num_rows: int | None
    ) -> None:
        self.optimizer = optimizer
        self.num_rows = num_rows
        self.adam_probes = tuple(adam_probes)
        self._copies: dict[int, Tensor] = {}

    def before(self) -> None:
        """Copy the parameters whose update the optimizer's state will not tell."""
        self._copies = {
            id(p): self._looked_at(p.detach()).clone()
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
                    now = self._looked_at(p.detach()).to(wide(p))
                    step = now - self._copies[id(p)]
                    squares_of_both = torch.stack((step.square().sum(), now.square().sum())) * self._times(p)
                    nothing = Moved(squares_of_both.new_zeros(2 + len(self.adam_probes)), has_adam=False)
                    of_adam = moved_of.get(id(p), nothing)
                    moved_of[id(p)] = Moved(torch.cat((squares_of_both, of_adam.sums[2:])), of_adam.has_adam)
        self._copies = {}
        return moved_of

    def _looked_at(self, x: Tensor) -> Tensor:
        """The rows of a parameter that are read, always the same ones."""
        rows = local(x)
        return rows if rows.ndim < 2 else sample_rows(rows, self.num_rows)

    def _times(self, p: Tensor) -> float:
        """How many times larger the whole parameter is than the rows that are looked at."""
        whole = local(p.detach())
        if whole.ndim < 2 or self.num_rows is None:
            return 1.0
        rows = whole.numel() // whole.shape[-1] if whole.numel() else 1
        return max(1.0, rows / self.num_rows)

    def _of_adam(self, parameters: Sequence[nn.Parameter], group: dict[str, Any], states: Any) -> dict[int, Tensor]:
        """All of one group: small ones together in a few fused operations, large ones in chunks that fit the cache."""
        together: list[tuple[nn.Parameter, list[Tensor], _Factors]] = []
        sums_of: dict[int, Tensor] = {}

        def take() -> None:
            sums = self._sums([flat for _, flat, _ in together], [factors for _, _, factors in together], group["eps"])
            sums_of.update({id(p): row * self._times(p) for (p, _, _), row in zip(together, sums, strict=True)})
            together.clear()

        for p in parameters:
            state = states[p]
            gradient = p.grad
            assert gradient is not None
            factors = _factors(state["step"], group, wide(p))
            read = (p, gradient, state["exp_avg"], state["exp_avg_sq"])
            flat = [self._looked_at(x.detach()).reshape(-1) for x in read]
            # A step count on another device cannot become a number without a transfer; fused operations take numbers.
            if flat[0].numel() <= SMALL and not isinstance(factors.share, Tensor):
                together.append((p, flat, factors))
                if sum(tensors[0].numel() for _, tensors, _ in together) > MOST_TOGETHER:
                    take()
                continue
            total = torch.zeros(2 + len(self.adam_probes), device=p.device, dtype=wide(p))
            for chunk in zip(*(x.split(CHUNK.get(p.device.type, CHUNK["cuda"])) for x in flat), strict=True):
                total += self._sums([list(chunk)], [factors], group["eps"])[0]
            sums_of[id(p)] = total * self._times(p)
        if together:
            take()
        return sums_of

    def _sums(self, tensors: Sequence[Sequence[Tensor]], factors: Sequence[_Factors], eps: float) -> Tensor:
        """Squares of update and weight, and Adam sums, one row for each (weight, gradient, first, second moment)."""
        fused = cast(Any, torch)
        weights, gradients, firsts, seconds = (list(column) for column in zip(*tensors, strict=True))
        below = fused._foreach_sqrt(seconds)
        fused._foreach_mul_(below, [each.second_correction**-0.5 for each in factors])
        fused._foreach_add_(below, eps)
        moved = fused._foreach_mul(weights, [each.share for each in factors])
        fused._foreach_addcdiv_(moved, firsts, below)
        columns = [squares(moved), squares(weights)]
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


@dataclass(frozen=True, slots=True)
class Moved:
    """What one step did to a parameter.

    Attributes:
        sums: over its entries, (2 + P,): squares of the update, squares of the parameter after it, and one sum for each
            of the P Adam probes.
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
