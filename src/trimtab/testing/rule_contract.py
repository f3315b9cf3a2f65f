"""The contract of rules in training: restarts, micro-batches, and two processes change nothing."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trimtab.intervention import LossTerm
from trimtab.loss import losses_of
from trimtab.testing.reads import NoNumbers
from trimtab.testing.rule_training import (
    MODES,
    STEPS,
    ActingRule,
    batch_of,
    make_model,
    make_optimizer,
    start,
    step_of,
    terms_of,
    train,
    train_on_ranks,
    weights_of,
)

TOLERANCE = 1e-6  # relative, in float64; statistics of rules are float32


class RuleContract(ABC):
    """Subclass, fill in ``make_rule``, and let pytest collect the tests.

    A small GPT is trained for 12 steps, two of them with spikes of the loss. Give a rule with settings with which it
    acts in these steps.
    """

    @abstractmethod
    def make_rule(self) -> ActingRule:
        """The rule under test: a gradient rule or an update rule."""

    def test_it_changes_training(self) -> None:
        """A rule is never silently inactive."""
        rule = self.make_rule()
        assert not _same(train(rule), train(None)), f"{rule.slug()} changes no weight in {STEPS} steps with spikes"

    def test_a_training_that_is_restored_goes_on_with_the_same_bits(self) -> None:
        """The state in ``optimizer.state_dict()`` is enough; it may be loaded before or after the rule is attached."""
        rule = self.make_rule()
        expected = train(rule)
        model, optimizer, _ = start(rule)
        for step in range(STEPS // 2):
            step_of(model, optimizer, step, [batch_of(step)])
        state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        again, restored, _ = start(rule)
        again.load_state_dict(state[0])
        restored.load_state_dict(state[1])
        for step in range(STEPS // 2, STEPS):
            step_of(again, restored, step, [batch_of(step)])
        assert _same(weights_of(again), expected), f"{rule.slug()} forgets state in a restart after {STEPS // 2} steps"

    def test_four_micro_batches_are_one_batch(self) -> None:
        """A rule acts once a step, on the sum of the gradients."""
        rule = self.make_rule()
        error = _distance(train(rule, accumulate=4), train(rule))
        assert error < TOLERANCE, f"{rule.slug()}: 4 micro-batches move weights by {error:.1e} from one batch"

    def test_two_processes_equal_one(self) -> None:
        """Replicated and sharded models get the weights of one process."""
        rule = self.make_rule()
        expected = train(rule)
        found = train_on_ranks(rule)
        for mode in MODES:
            error = _distance(found[mode], expected)
            assert error < TOLERANCE, f"{rule.slug()}: two processes ({mode}) are {error:.1e} from one process"

    def test_what_is_not_finite_enters_no_state(self) -> None:
        """One gradient with NaN, and one with infinity, leave the state of the rule finite."""
        rule = self.make_rule()
        for value in (float("nan"), float("inf")):
            model, optimizer, attached = start(rule)
            weight = next(iter(model.parameters()))
            for step in range(STEPS):
                optimizer.zero_grad()
                if step == STEPS // 2:
                    before = _num_odd(attached.state_dict())
                    for p in model.parameters():
                        p.grad = torch.zeros_like(p)
                    weight.grad = torch.full_like(weight, value)
                    attached.before_step()
                    attached.after_step()
                    after = _num_odd(attached.state_dict())
                    assert after <= before, f"{rule.slug()} takes a gradient of {value} into its state"
                    model.load_state_dict(make_model().state_dict())
                else:
                    step_of(model, optimizer, step, [batch_of(step)])

    def test_it_reads_no_number_back_to_the_host(self) -> None:
        """On a GPU, ``item()``, ``float(x)`` and ``if x`` wait for all work that was started before."""
        rule = self.make_rule()
        model, optimizer, attached = start(rule)
        for step in range(STEPS):
            step_of(model, optimizer, step, [batch_of(step)])
            with NoNumbers() as reads:
                attached.before_step()
                attached.after_step()
            assert not reads.operations, f"{rule.slug()} reads a number back to the host: {reads.operations[0]}"

    def test_removal_leaves_nothing_attached(self) -> None:
        """After ``remove`` training is that without the rule."""
        rule = self.make_rule()
        model, optimizer, attached = start(rule)
        attached.remove()
        for step in range(STEPS):
            step_of(model, optimizer, step, [batch_of(step)])
        assert _same(weights_of(model), train(None)), f"{rule.slug()} acts after it was removed"


class LossTermContract(ABC):
    """The same for a loss term: subclass, and fill in ``make_term``.

    The term is added to the loss of the same training; give it a coefficient with which it matters there.
    """

    @abstractmethod
    def make_term(self) -> LossTerm:
        """The term under test."""

    def test_it_changes_training(self) -> None:
        """A term is never silently inactive."""
        term = self.make_term()
        assert not _same(train(term), train(None)), f"{term.slug()} changes no weight in {STEPS} steps"

    def test_a_training_that_is_restored_goes_on_with_the_same_bits(self) -> None:
        """``state_dict`` of the running term is enough."""
        term = self.make_term()
        expected = train(term)
        model = make_model()
        optimizer = make_optimizer(model)
        running = terms_of(term)
        for step in range(STEPS // 2):
            step_of(model, optimizer, step, [batch_of(step)], running)
        state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), running[0].state_dict()))
        again = make_model()
        restored = make_optimizer(again)
        later = terms_of(term)
        again.load_state_dict(state[0])
        restored.load_state_dict(state[1])
        later[0].load_state_dict(state[2])
        for step in range(STEPS // 2, STEPS):
            step_of(again, restored, step, [batch_of(step)], later)
        assert _same(weights_of(again), expected), f"{term.slug()} forgets state in a restart after {STEPS // 2} steps"

    def test_four_micro_batches_are_one_batch(self) -> None:
        """A term is a mean over tokens, as the loss is."""
        term = self.make_term()
        error = _distance(train(term, accumulate=4), train(term))
        assert error < TOLERANCE, f"{term.slug()}: 4 micro-batches move weights by {error:.1e} from one batch"

    def test_two_processes_equal_one(self) -> None:
        """Replicated and sharded models get the weights of one process."""
        term = self.make_term()
        expected = train(term)
        found = train_on_ranks(term)
        for mode in MODES:
            error = _distance(found[mode], expected)
            assert error < TOLERANCE, f"{term.slug()}: two processes ({mode}) are {error:.1e} from one process"

    def test_it_reads_no_number_back_to_the_host(self) -> None:
        """On a GPU, ``item()``, ``float(x)`` and ``if x`` wait for all work that was started before."""
        term = self.make_term()
        model = make_model()
        tokens = batch_of(0)
        running = terms_of(term)
        with NoNumbers() as reads:
            losses_of(model, tokens, running, 1)
        assert not reads.operations, f"{term.slug()} reads a number back to the host: {reads.operations[0]}"


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest relative distance of two sets of weights."""
    return max(float((one[name] - other[name]).norm() / (1e-6 + other[name].norm())) for name in other)


def _num_odd(state: Any) -> int:
    """Number of entries of a state that are not finite."""
    return sum(int((~leaf.isfinite()).sum()) for leaf in _tensors(state))


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
