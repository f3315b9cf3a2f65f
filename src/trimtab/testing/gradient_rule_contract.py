"""The contract of gradient rules: a rule acts, on gradients only, and continues exactly from its saved state."""

from __future__ import annotations

import copy
import gc
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.intervention import GradientRule, RunningRule
from trimtab.testing.reads import NoNumbers

SHAPES = ((4, 3), (3,), (2, 2, 2))
SPIKE = 1000.0


class GradientRuleContract(ABC):
    """Subclass, fill in ``make_rule``, and let pytest collect the tests.

    Attributes:
        steps: optimizer steps that are simulated; more than a rule's warm-up takes.
        spikes: steps, from 0, at which the gradients are 1000 times larger than usual.
        saved_after: numbers of steps after which the state is saved and loaded.
    """

    steps: int = 128
    spikes: Sequence[int] = (40, 116, 124)
    saved_after: Sequence[int] = (0, 1, 60, 117)

    @abstractmethod
    def make_rule(self) -> GradientRule:
        """The rule under test."""

    def gradients(self, step: int) -> list[Tensor]:
        """Fresh gradients of one step, the same ones on every call; override it if the rule acts on others."""
        generator = torch.Generator().manual_seed(step)
        scale = SPIKE if step in self.spikes else 1.0
        return [scale * torch.randn(shape, generator=generator) for shape in SHAPES]

    def test_it_changes_the_gradients_of_at_least_one_step(self) -> None:
        """A rule is never silently inactive."""
        changed = [step for step, (after, _) in enumerate(self.run()) if not _equal(after, self.gradients(step))]
        assert changed, f"{self.slug} changes no gradient in {self.steps} steps with spikes at {list(self.spikes)}"

    def test_it_leaves_parameters_alone(self) -> None:
        """A rule changes gradients only, and changes them in place."""
        parameters = fresh_parameters()
        rule = self.make_rule().start(named(parameters))
        before = [p.detach().clone() for p in parameters]
        for step in range(self.steps):
            gradients = _set(parameters, self.gradients(step))
            rule(step + 1, named(parameters))
            assert _equal([p.detach() for p in parameters], before), f"{self.slug} changes parameters at step {step}"
            in_place = all(p.grad is gradient for p, gradient in zip(parameters, gradients, strict=True))
            assert in_place, f"{self.slug} puts other tensors in the place of gradients at step {step}"

    def test_the_same_gradients_give_the_same_result(self) -> None:
        """Two rules started alike agree bit for bit, and draw no random numbers from torch's global stream."""
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = list(self.run())
        assert torch.equal(torch.get_rng_state(), state), f"{self.slug} draws from torch's global random stream"
        torch.manual_seed(2)
        self.assert_same(first, list(self.run()), "started again")

    def test_a_parameter_without_gradient_is_passed_over(self) -> None:
        """Frozen and unused parameters have no gradient, at the first step or at a later step."""
        parameters = fresh_parameters()
        rule = self.make_rule().start(named(parameters))
        missing = [(0,), (), (1, 2), (0, 1, 2), ()]
        for step, without in enumerate(missing):
            _set(parameters, self.gradients(step))
            for index in without:
                parameters[index].grad = None
            self.called(rule, step, parameters, f"where the gradients of parameters {list(without)} are None")
            gone = [index for index, p in enumerate(parameters) if p.grad is None]
            assert gone == list(without), (
                f"{self.slug} sets gradients that were None: now {gone} are None, expected {list(without)}"
            )

    def test_it_returns_the_norm_of_the_gradients_it_was_given_or_none(self) -> None:
        """The global L2 norm before the rule, as a tensor without axes."""
        for step, (_, norm) in enumerate(self.run()):
            if norm is not None:
                is_scalar = isinstance(norm, Tensor) and norm.ndim == 0
                assert is_scalar, f"{self.slug} returns {norm!r}; return a tensor without axes, or None"
                expected = torch.cat([gradient.flatten() for gradient in self.gradients(step)]).norm()
                close = torch.allclose(norm, expected, rtol=1e-5)
                assert close, f"{self.slug} returns a norm of {norm}, but that before the rule is {expected}"

    def test_a_saved_rule_continues_exactly(self) -> None:
        """A rule that loads a saved state continues like the saved rule, whether or not it was used before."""
        for after in self.saved_after:
            parameters = fresh_parameters()
            rule = self.make_rule().start(named(parameters))
            list(self.continued(rule, parameters, range(after)))
            state = copy.deepcopy(rule.state_dict())
            expected = list(self.continued(rule, parameters, range(after, self.steps)))
            for used in (False, True):
                others = fresh_parameters()
                loaded = self.make_rule().start(named(others))
                if used:
                    list(self.continued(loaded, others, range(self.spikes[0], self.spikes[0] + 2)))
                loaded.load_state_dict(copy.deepcopy(state))
                actual = list(self.continued(loaded, others, range(after, self.steps)))
                self.assert_same(expected, actual, f"loaded from its state after {after} steps")

    def test_its_state_can_be_saved_without_pickle(self) -> None:
        """It consists of tensors, numbers, text and None in dicts with text keys and in lists."""
        parameters = fresh_parameters()
        rule = self.make_rule().start(named(parameters))
        list(self.continued(rule, parameters, range(2)))
        bad = sorted({type(leaf).__name__ for leaf in _leaves(rule.state_dict())})
        assert not bad, f"the state of {self.slug} holds {', '.join(bad)}; use tensors, numbers and text"

    def test_it_holds_no_gradient_after_the_step(self) -> None:
        """A gradient that is kept costs its memory until the next step."""
        parameters = fresh_parameters()
        rule = self.make_rule().start(named(parameters))
        for step in range(2):
            kept = [weakref.ref(gradient) for gradient in _set(parameters, self.gradients(step))]
            rule(step + 1, named(parameters))
            for p in parameters:
                p.grad = None
            gc.collect()
            assert not any(ref() is not None for ref in kept), f"{self.slug} holds gradients after the step"

    def test_it_reads_no_number_back_to_the_host(self) -> None:
        """On a GPU, ``item()``, ``float(x)`` and ``if x`` wait for all work that was started before."""
        parameters = fresh_parameters()
        rule = self.make_rule().start(named(parameters))
        for step in range(self.steps):
            _set(parameters, self.gradients(step))
            with NoNumbers() as reads:
                rule(step + 1, named(parameters))
            assert not reads.operations, (
                f"{self.slug} reads a number back to the host at step {step}: {reads.operations[0]}"
            )

    @property
    def slug(self) -> str:
        """The name of the rule, for messages."""
        return type(self.make_rule()).slug()

    def run(self) -> Iterator[tuple[list[Tensor], Tensor | None]]:
        """Gradients after the rule, and what it returned, for every step of a fresh rule."""
        parameters = fresh_parameters()
        return self.continued(self.make_rule().start(named(parameters)), parameters, range(self.steps))

    def continued(
        self, rule: RunningRule, parameters: Sequence[nn.Parameter], steps: range
    ) -> Iterator[tuple[list[Tensor], Tensor | None]]:
        """Gradients after the rule, and what it returned, for each of the steps."""
        for step in steps:
            _set(parameters, self.gradients(step))
            norm = rule(step + 1, named(parameters))
            yield [p.grad.clone() for p in parameters if p.grad is not None], norm

    def called(self, rule: RunningRule, step: int, parameters: Sequence[nn.Parameter], where: str) -> None:
        """Call the rule and say where it failed."""
        try:
            rule(step + 1, named(parameters))
        except Exception as error:
            raise AssertionError(f"{self.slug} fails {where}: {type(error).__name__}: {error}") from error

    def assert_same(self, expected: Sequence[Any], actual: Sequence[Any], when: str) -> None:
        """Fail if gradients or norms differ in a single bit."""
        for step, ((gradients, norm), (others, other_norm)) in enumerate(zip(expected, actual, strict=True)):
            assert _equal(gradients, others), f"{self.slug}, {when}, gives other gradients {step} steps later"
            same = torch.equal(norm, other_norm) if isinstance(norm, Tensor) else norm == other_norm
            assert same, f"{self.slug}, {when}, returns another norm {step} steps later"


def fresh_parameters() -> list[nn.Parameter]:
    """Three parameters of one, two and three axes, the same ones on every call."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def named(parameters: Sequence[nn.Parameter]) -> dict[str, nn.Parameter]:
    """Parameters by a name, as rules are given them."""
    return {f"parameter {number}": parameter for number, parameter in enumerate(parameters)}


def _set(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    return gradients


def _equal(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors, others, strict=True))


def _leaves(state: object) -> Iterator[object]:
    """The values of a state that are of none of the permitted kinds."""
    if isinstance(state, Mapping):
        for key, value in state.items():
            if not isinstance(key, str):
                yield key
            yield from _leaves(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _leaves(value)
    elif not isinstance(state, Tensor | bool | int | float | str | None):
        yield state
