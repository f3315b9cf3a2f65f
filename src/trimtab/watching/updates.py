"""How far an optimizer step moves each parameter, and what Adam's second moment says; without a copy for Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from trimtab.probe import AdamProbe, sample_rows, wide
from trimtab.watching.parameters import local, squares

CHUNK = {"cpu": 1 << 16, "cuda": 1 << 24}  # on a CPU the chunks stay in the cache
SMALL = 1 << 18  # entries up to which parameters are taken together
MOST_TOGETHER = 1 << 20  # entries taken together: their copies are the memory of a reading


class StepMeter:
    """Measures one optimizer step: call ``before`` and ``after`` it.

    For torch's Adam and AdamW the update is computed from the state that the step leaves behind. For any other
    optimizer, and for parameters in half precision, they are copied before a step that is read, which takes their
    memory once more. Of a matrix, ``num_rows`` rows are looked at, and the sums scaled up to all; None looks at all.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, adam_probes: Sequence[AdamProbe], num_rows: int | None
    ) -> None:
        self.optimizer, self.num_rows = optimizer, num_rows
        self.adam_probes = tuple(adam_probes)
        self._copies: dict[int, Tensor] = {}

    def before(self) -> None:
        """Copy what the step's own state will not tell."""
        self._copies = {
            id(p): self._looked_at(p.detach()).clone()
            for group in self.optimizer.param_groups
            for p in group["params"]
            # In half precision a step is rounded away in part: what was done is not what Adam meant.
            if p.grad is not None and (not _is_plain_adam(self.optimizer, group) or p.element_size() < 4)
        }

    def after(self) -> dict[int, Tensor]:
        """By the id of each updated parameter: squares of the update, squares of the parameter, Adam sums, (2 + P,)."""
        found: dict[int, Tensor] = {}
        for group in self.optimizer.param_groups:
            plain = _is_plain_adam(self.optimizer, group)
            parameters = cast("list[nn.Parameter]", group["params"])
            if plain:
                stepped = [p for p in parameters if p.grad is not None and self.optimizer.state.get(p)]
                found |= self._of_adam(stepped, group)
            for p in parameters:
                if id(p) in self._copies:
                    now = self._looked_at(p.detach()).to(wide(p))
                    step = now - self._copies[id(p)]
                    moved = torch.stack((step.square().sum(), now.square().sum())) * self._times(p)
                    found[id(p)] = torch.cat((moved, found[id(p)][2:])) if id(p) in found else moved
        self._copies = {}
        return found

    def _looked_at(self, x: Tensor) -> Tensor:
        """The rows of a parameter that are read, always the same ones."""
        mine = local(x)
        return mine if mine.ndim < 2 else sample_rows(mine, self.num_rows)

    def _times(self, p: Tensor) -> float:
        """How many times larger the whole is than what is looked at."""
        mine = local(p.detach())
        if mine.ndim < 2 or self.num_rows is None:
            return 1.0
        rows = mine.numel() // mine.shape[-1] if mine.numel() else 1
        return max(1.0, rows / self.num_rows)

    def _of_adam(self, parameters: Sequence[nn.Parameter], group: dict[str, Any]) -> dict[int, Tensor]:
        """All of one group: small ones together in a few fused operations, large ones in chunks that fit the cache."""
        together: list[tuple[nn.Parameter, list[Tensor], _Factors]] = []
        found: dict[int, Tensor] = {}

        def take() -> None:
            sums = self._sums([flat for _, flat, _ in together], [factors for _, _, factors in together], group["eps"])
            found.update({id(p): row * self._times(p) for (p, _, _), row in zip(together, sums, strict=True)})
            together.clear()

        for p in parameters:
            state, gradient = self.optimizer.state[p], p.grad
            assert gradient is not None
            factors = _factors(state["step"], group, wide(p))
            read = (p, gradient, state["exp_avg"], state["exp_avg_sq"])
            flat = [self._looked_at(x.detach()).reshape(-1) for x in read]
            # A step count that lives on another device is no number, and fused operations take numbers.
            if flat[0].numel() <= SMALL and not isinstance(factors.share, Tensor):
                together.append((p, flat, factors))
                if sum(tensors[0].numel() for _, tensors, _ in together) > MOST_TOGETHER:
                    take()
                continue
            total = torch.zeros(2 + len(self.adam_probes), device=p.device, dtype=wide(p))
            for chunk in zip(*(x.split(CHUNK.get(p.device.type, CHUNK["cuda"])) for x in flat), strict=True):
                total += self._sums([list(chunk)], [factors], group["eps"])[0]
            found[id(p)] = total * self._times(p)
        if together:
            take()
        return found

    def _sums(self, tensors: Sequence[Sequence[Tensor]], factors: Sequence[_Factors], eps: float) -> Tensor:
        """Squares of update and weight, and Adam sums, one row for each (weight, gradient, first, second moment)."""
        fused = cast(Any, torch)
        weights, gradients, firsts, seconds = (list(column) for column in zip(*tensors, strict=True))
        below = fused._foreach_sqrt(seconds)
        fused._foreach_mul_(below, [one.second_debt**-0.5 for one in factors])
        fused._foreach_add_(below, eps)
        moved = fused._foreach_mul(weights, [one.share for one in factors])
        fused._foreach_addcdiv_(moved, firsts, below)
        columns = [squares(moved), squares(weights)]
        for probe in self.adam_probes:
            totals = [
                probe.total(gradient, second / one.second_debt, eps)
                for gradient, second, one in zip(gradients, seconds, factors, strict=True)
            ]
            columns.append(torch.stack(totals).to(columns[0].dtype))
        scales = [one.scale for one in factors]
        if isinstance(scales[0], Tensor):
            columns[0] = columns[0] * torch.stack(scales).square()
        else:
            columns[0] = columns[0] * columns[0].new_tensor([scale**2 for scale in scales])
        return torch.stack(columns, dim=1)


@dataclass(frozen=True, slots=True)
class _Factors:
    """What turns moments into a step: ``-scale (m / (sqrt(v / second_debt) + eps) + share w)``, w the new weight."""

    second_debt: Any
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
    lost = lr * group["weight_decay"] if group.get("decoupled_weight_decay", False) else 0.0
    # After the step only the new weight is there: w = (1 - lost) w_old - rate adam, so the step itself is
    # w - w_old = -(rate adam + lost w) / (1 - lost).
    return _Factors(1 - beta2**step, rate / (1 - lost), lost / rate if isinstance(lr, Tensor) or lr else 0.0)


def has_moments(optimizer: torch.optim.Optimizer) -> bool:
    """Whether every group follows Adam as torch has it, so that its state tells the update."""
    return all(_is_plain_adam(optimizer, group) for group in optimizer.param_groups)


def _is_plain_adam(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    plain: tuple[Callable[..., Any], ...] = (torch.optim.Adam, torch.optim.AdamW)
    return type(optimizer) in plain and not group.get("amsgrad") and not group.get("maximize")
