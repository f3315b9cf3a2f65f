"""The contract of gradient rules lets sound rules pass and catches each way to be wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab import interventions
from trimtab.intervention import GradientRule, RunningRule, Source
from trimtab.interventions import GlobalClip
from trimtab.testing import GradientRuleContract

SOURCE = Source(title="none", arxiv="", place="", equation="")


class Halving:
    """A sound rule with state: it halves gradients whose norm is ten times their running mean."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.mean: Tensor = torch.zeros(())

    def __call__(self, step: int, parameters: Any) -> Tensor | None:
        gradients = self.gradients()
        norm = self.norm_of(gradients)
        factor = torch.where((self.mean > 0) & (norm > 10 * self.mean), 0.5, 1.0)
        for gradient in gradients:
            gradient.mul_(factor)
        self.mean = torch.where(self.mean > 0, 0.9 * self.mean + 0.1 * norm * factor, norm)
        return norm

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def norm_of(self, gradients: list[Tensor]) -> Tensor:
        return torch.nn.utils.get_total_norm(gradients)

    def state_dict(self) -> dict[str, object]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"].clone()


class DoesNothing(Halving):
    @override
    def __call__(self, step: int, parameters: Any) -> Tensor | None:
        return self.norm_of(self.gradients())


class LosesState(Halving):
    @override
    def state_dict(self) -> dict[str, object]:
        return {}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class LoadsNothing(Halving):
    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class WritesParameters(Halving):
    @override
    def __call__(self, step: int, parameters: Any) -> Tensor | None:
        with torch.no_grad():
            self.parameters[-1].mul_(0.999)
        return super().__call__(step, parameters)


class NeedsEveryGradient(Halving):
    @override
    def gradients(self) -> list[Tensor]:
        for p in self.parameters:
            assert p.grad is not None
        return [p.grad for p in self.parameters if p.grad is not None]


class MakesGradientsUp(Halving):
    @override
    def gradients(self) -> list[Tensor]:
        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        return super().gradients()


class Random(Halving):
    @override
    def __call__(self, step: int, parameters: Any) -> Tensor | None:
        norm = super().__call__(step, parameters)
        for gradient in self.gradients():
            gradient.add_(torch.randn_like(gradient))
        return norm


class NormWithAxes(Halving):
    @override
    def norm_of(self, gradients: list[Tensor]) -> Tensor:
        return super().norm_of(gradients)[None]


class NormAsNumber(Halving):
    @override
    def __call__(self, step: int, parameters: Any) -> Any:
        super().__call__(step, parameters)
        return 1.0


class NormAfter(Halving):
    @override
    def __call__(self, step: int, parameters: Any) -> Tensor | None:
        super().__call__(step, parameters)
        return self.norm_of(self.gradients())


class OtherTensors(Halving):
    @override
    def gradients(self) -> list[Tensor]:
        for p in self.parameters:
            p.grad = None if p.grad is None else p.grad.clone()
        return super().gradients()


class HoldsGradients(Halving):
    @override
    def __call__(self, step: int, parameters: Any) -> Tensor | None:
        self.held = self.gradients()
        return super().__call__(step, parameters)


class ReadsANumber(Halving):
    @override
    def norm_of(self, gradients: list[Tensor]) -> Tensor:
        norm = super().norm_of(gradients)
        self.last_norm = float(norm)
        return norm


class OddState(Halving):
    @override
    def state_dict(self) -> dict[str, object]:
        return {"mean": self.mean, "seen": {1, 2}}


@dataclass(frozen=True)
class Started(GradientRule):
    source: ClassVar[Source] = SOURCE
    running: Callable[[Sequence[nn.Parameter]], RunningRule]

    @override
    def start(self, parameters: Mapping[str, nn.Parameter]) -> RunningRule:
        return self.running(list(parameters.values()))


def contract_of(rule: GradientRule) -> type[GradientRuleContract]:
    class Contract(GradientRuleContract):
        @override
        def make_rule(self) -> GradientRule:
            return rule

    return Contract


def failures(running: Callable[[Sequence[nn.Parameter]], RunningRule]) -> set[str]:
    contract = contract_of(Started(running))()
    failed: set[str] = set()
    for name in dir(contract):
        if name.startswith("test_"):
            try:
                getattr(contract, name)()
            except AssertionError:
                failed.add(name)
    return failed


ACTS = "test_it_changes_the_gradients_of_at_least_one_step"
PARAMETERS = "test_it_leaves_parameters_alone"
SAME = "test_the_same_gradients_give_the_same_result"
NONE = "test_a_parameter_without_gradient_is_passed_over"
NORM = "test_it_returns_the_norm_of_the_gradients_it_was_given_or_none"
CONTINUES = "test_a_saved_rule_continues_exactly"
SAVED = "test_its_state_can_be_saved_without_pickle"
HOLDS = "test_it_holds_no_gradient_after_the_step"
READS = "test_it_reads_no_number_back_to_the_host"


@pytest.mark.parametrize(
    ("running", "caught"),
    [
        (DoesNothing, {ACTS}),
        (LosesState, {CONTINUES}),
        (LoadsNothing, {CONTINUES}),
        (WritesParameters, {PARAMETERS}),
        (NeedsEveryGradient, {NONE}),
        (MakesGradientsUp, {NONE}),
        (Random, {SAME, CONTINUES}),
        (NormAsNumber, {NORM}),
        (NormAfter, {NORM}),
        (OtherTensors, {PARAMETERS}),
        (HoldsGradients, {HOLDS}),
        (ReadsANumber, {READS}),
        (OddState, {SAVED}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_contract_catches(running: Callable[[Sequence[nn.Parameter]], RunningRule], caught: set[str]) -> None:
    assert failures(running) == caught


def test_the_contract_catches_a_norm_with_an_axis() -> None:
    assert NORM in failures(NormWithAxes)


def test_the_contract_lets_a_sound_rule_with_state_pass() -> None:
    assert failures(Halving) == set()


RULES = [kind for kind in interventions.catalogue().values() if issubclass(kind, GradientRule)]
assert GlobalClip in RULES
for _kind in RULES:
    _name = f"Test{_kind.__name__}"
    globals()[_name] = type(_name, (contract_of(_kind()),), {})
