"""Rules with one defect each, which the contract must catch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from trimtab.gradients import Gradients
from trimtab.intervention import (
    GradientRule,
    LossTerm,
    RunningLossTerm,
    RunningRule,
    RunningUpdateRule,
    Source,
    Trained,
    UpdateRule,
)
from trimtab.sharding import local

SOURCE = Source(title="none", arxiv="", place="tests", equation="g <- g / mean ||g||")


class MeanNorm:
    """Divides gradients by the mean of their global norms so far."""

    def __init__(self) -> None:
        self.mean = torch.ones(())
        self.count = 0

    def __call__(self, step: int, parameters: Mapping[str, nn.Parameter]) -> Tensor | None:
        gradients = Gradients.of(parameters)
        norm = self.norm(gradients)
        self.count += 1
        self.mean = self.mean + (norm.float().nan_to_num(0, 0, 0) - self.mean) / self.count
        gradients.scale(1 / self.mean)
        return None

    def norm(self, gradients: Gradients) -> Tensor:
        return gradients.total()

    def state_dict(self) -> dict[str, object]:
        return {"mean": self.mean.clone(), "count": self.count}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.mean, self.count = cast(Tensor, state["mean"]), cast(int, state["count"])


class _Forgets(MeanNorm):
    def load_state_dict(self, state: dict[str, object]) -> None:
        self.count = cast(int, state["count"])


class _Reads(MeanNorm):
    def norm(self, gradients: Gradients) -> Tensor:
        return torch.tensor(float(gradients.total()))


class _LetsNaNIn(MeanNorm):
    def __call__(self, step: int, parameters: Mapping[str, nn.Parameter]) -> Tensor | None:
        self.count += 1
        self.mean = self.mean + (Gradients.of(parameters).total().float() - self.mean) / self.count
        return None


class _OfShards(MeanNorm):
    def norm(self, gradients: Gradients) -> Tensor:
        grads = [local(p.grad) for p in gradients.values() if p.grad is not None]
        return torch.stack([g.norm() for g in grads]).norm()


@dataclass(frozen=True, kw_only=True)
class _Rule(GradientRule):
    source: ClassVar[Source] = SOURCE
    running: ClassVar[type[MeanNorm]] = MeanNorm

    def start(self, parameters: Mapping[str, nn.Parameter]) -> RunningRule:
        return self.running()


class ForgetsState(_Rule):
    running = _Forgets


class ReadsANumber(_Rule):
    running = _Reads


class LetsNaNIn(_Rule):
    running = _LetsNaNIn


class ForThisRankOnly(_Rule):
    """Its norm is that of the shards of this process."""

    running = _OfShards


class _Shrinks(RunningUpdateRule):
    """Shrinks weights in a hook of the model, and so does not stop when it is removed."""

    def __init__(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(lambda module, _: self.shrink(module))

    @torch.no_grad()
    def shrink(self, model: nn.Module) -> None:
        for p in model.parameters():
            p.mul_(0.99)

    def __call__(self, step: int, parameters: Mapping[str, nn.Parameter]) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class StaysAttached(UpdateRule):
    source: ClassVar[Source] = SOURCE

    def start(self, trained: Trained) -> RunningUpdateRule:
        return _Shrinks(trained.model)


# --- loss terms


class _Growing:
    """The mean of log Z squared, with a weight that grows with each call, and a state that leaves the count out."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, step: int, logits: Tensor, targets: Tensor, log_z: Any) -> Tensor:
        self.count += 1
        return 0.01 * self.count * log_z().square().mean()

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        pass


class _Sum(_Growing):
    def __call__(self, step: int, logits: Tensor, targets: Tensor, log_z: Any) -> Tensor:
        return 0.001 * log_z().square().sum()


class _Asking(_Growing):
    def __call__(self, step: int, logits: Tensor, targets: Tensor, log_z: Any) -> Tensor:
        return log_z().mean() * float(log_z().mean())


@dataclass(frozen=True, kw_only=True)
class _Term(LossTerm):
    source: ClassVar[Source] = SOURCE
    running: ClassVar[type[_Growing]] = _Growing

    def start(self) -> RunningLossTerm:
        return self.running()


class ForgetsItsCount(_Term):
    running = _Growing


class SumsOverTokens(_Term):
    running = _Sum


class AsksForANumber(_Term):
    running = _Asking
