"""The loop, the rules inside a step, its schedule and its clipping, each against a few lines written out by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trimtab
from trimtab import GPT, GPTConfig
from trimtab.intervention import GradientRule, LogZ, RunningRule, Source
from trimtab.interventions import GlobalClip
from trimtab.loop import Evaluation, Rules, StepRecord, Verdict, train
from trimtab.loss import held_out_loss, next_token_loss
from trimtab.optim import ScheduleConfig
from trimtab.run.build import start_rules
from trimtab.run.spec import RunSpec, TrainingProtocol

CONFIG = GPTConfig(vocab_size=32, context=8, num_layers=1, num_heads=2, width=16)
Parameters = Mapping[str, nn.Parameter]


def make_model() -> GPT:
    torch.manual_seed(3)
    return GPT(CONFIG)


def batch(seed: int, size: int = 8) -> Tensor:
    return torch.randint(0, 32, (size, 9), generator=torch.Generator().manual_seed(seed))


def batches(num_steps: int, accumulate: int = 1) -> list[tuple[Tensor, ...]]:
    return [batch(step).chunk(accumulate) for step in range(num_steps)]


def run(model: nn.Module, steps: list[tuple[Tensor, ...]], lr: float = 0.1, **options: Any) -> list[StepRecord]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return list(train(model, steps, optimizer, lambda _: lr, **options))


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# The loop


def test_the_public_name_train_is_the_function_however_often_it_is_asked_for() -> None:
    assert [trimtab.train, trimtab.train] == [train, train]


def test_the_loop_does_what_three_lines_of_sgd_do() -> None:
    model, plain = make_model(), make_model()
    records = run(model, batches(3))
    for step in range(3):
        loss = F.cross_entropy(plain(batch(step)[:, :-1]).flatten(0, 1), batch(step)[:, 1:].flatten())
        assert float(records[step].loss) == float(loss.detach())
        plain.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.add_(parameter.grad, alpha=-0.1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_steps_are_counted_from_one_and_the_schedule_from_zero() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    records = list(train(model, batches(3), optimizer, schedule=lambda step: 0.1 * (step + 1)))
    assert [record.step for record in records] == [1, 2, 3]
    assert [record.multiplier for record in records] == pytest.approx([0.1, 0.2, 0.3])
    assert [record.verdict for record in records] == [Verdict.APPLY] * 3


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_micro_batches_give_the_gradient_and_loss_of_the_whole_batch(accumulate: int) -> None:
    whole, split = make_model(), make_model()
    one, many = run(whole, batches(3)), run(split, batches(3, accumulate))
    assert [float(r.loss) for r in one] == pytest.approx([float(r.loss) for r in many], rel=1e-5)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_loss_of_a_step_is_that_before_its_update() -> None:
    model = make_model()
    before = float(next_token_loss(model, batch(0)).detach())
    assert float(run(model, batches(1))[0].loss) == before


def test_evaluations_come_after_the_steps_asked_for_and_see_the_updated_weights() -> None:
    model = make_model()
    seen: list[Tensor] = []

    def evaluate() -> Tensor:
        seen.append(next(model.parameters()).detach().clone())
        return held_out_loss(model, batch(99), 4)

    records = run(model, batches(4), evaluation=Evaluation(loss=evaluate, after=(0, 2, 4, 9)))
    assert [record.step for record in records] == [0, 1, 2, 3, 4]
    assert [record.step for record in records if record.held_out_loss is not None] == [0, 2, 4]
    assert math.isnan(float(records[0].loss))
    assert records[0].multiplier == 0.0
    assert torch.equal(seen[0], next(make_model().parameters()))
    assert torch.equal(seen[-1], next(model.parameters()))
    assert not torch.equal(seen[0], seen[1])


def test_no_evaluation_before_training_unless_asked_for() -> None:
    model = make_model()
    records = run(model, batches(2), evaluation=Evaluation(loss=lambda: torch.tensor(0.0), after=(2,)))
    assert [record.step for record in records] == [1, 2]


def test_evaluating_does_not_change_the_training() -> None:
    model, other = make_model(), make_model()
    run(model, batches(3), evaluation=Evaluation(loss=lambda: held_out_loss(model, batch(99), 4), after=range(4)))
    run(other, batches(3))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_held_out_loss_is_the_mean_over_all_windows_whatever_the_batch_and_keeps_the_mode() -> None:
    model = make_model()
    expected = float(next_token_loss(model, batch(5, 7)).detach())
    for training in (True, False):
        model.train(training)
        for size in (1, 3, 7, 64):
            loss = held_out_loss(model, batch(5, 7), size)
            assert float(loss) == pytest.approx(expected, rel=1e-5)
            assert not loss.requires_grad
        assert model.training is training


def test_an_evaluation_restores_the_mode_of_every_submodule() -> None:
    model = make_model()
    model.blocks[0].mlp.eval()  # as of a part that is not to drop anything
    before = {name: module.training for name, module in model.named_modules()}
    assert set(before.values()) == {True, False}
    seen: list[bool] = []
    handle = model.blocks[0].attn.register_forward_hook(lambda module, *_: seen.append(module.training))
    held_out_loss(model, batch(5), 4)
    handle.remove()
    assert seen == [False, False], "not evaluated in eval mode"
    assert {name: module.training for name, module in model.named_modules()} == before


def test_an_evaluation_that_fails_restores_the_modes_too() -> None:
    model = make_model()
    model.blocks[0].mlp.eval()
    before = {name: module.training for name, module in model.named_modules()}
    with pytest.raises(IndexError):
        held_out_loss(model, torch.full((2, 9), 32), 4)  # no such token
    assert {name: module.training for name, module in model.named_modules()} == before


def test_a_submodule_put_into_eval_mode_during_training_stays_there_over_evaluations() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    evaluation = Evaluation(loss=lambda: held_out_loss(model, batch(99), 4), after=range(4))
    modes: list[tuple[bool, bool]] = []
    for record in train(model, batches(3), optimizer, evaluation=evaluation):
        modes.append((model.training, model.blocks[0].mlp.training))
        if record.step == 1:
            model.blocks[0].mlp.eval()
    assert modes[1:] == [(True, True), (True, False), (True, False)]


class Stateless:
    def before_step(self, step: int, parameters: Parameters) -> None: ...

    def remove(self) -> None: ...

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        pass


def test_gradient_rules_run_in_order_before_the_step_and_the_first_norm_is_recorded() -> None:
    model = make_model()
    calls: list[str] = []

    class Rule(Stateless):
        def __init__(self, name: str, norm: float | None) -> None:
            self.name, self.norm = name, norm

        def __call__(self, step: int, parameters: Parameters) -> Tensor | None:
            calls.append(self.name)
            for parameter in parameters.values():
                assert parameter.grad is not None
                parameter.grad.zero_()
            return None if self.norm is None else torch.tensor(self.norm)

    before = copy.deepcopy(list(model.parameters()))
    records = run(model, batches(1), rules=Rules(gradient=[Rule("a", None), Rule("b", 2.0), Rule("c", 3.0)]))
    assert calls == ["a", "b", "c"]
    assert float(records[0].grad_norm) == 2.0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_first_norm_that_is_nan_is_the_one_recorded() -> None:
    class Rule(Stateless):
        def __init__(self, norm: float) -> None:
            self.norm = norm

        def __call__(self, step: int, parameters: Parameters) -> Tensor | None:
            return torch.tensor(self.norm)

    records = run(make_model(), batches(1), rules=Rules(gradient=[Rule(math.nan), Rule(3.0)]))
    assert math.isnan(float(records[0].grad_norm))


def test_gradient_rules_are_called_with_the_step_and_the_trained_parameters_by_name() -> None:
    model = make_model()
    model.final_norm.requires_grad_(False)
    calls: list[tuple[int, dict[str, nn.Parameter]]] = []

    class Rule(Stateless):
        def __call__(self, step: int, parameters: Parameters) -> Tensor | None:
            calls.append((step, dict(parameters)))
            return None

    run(model, batches(3), rules=Rules(gradient=[Rule()]))
    expected = {name: one for name, one in model.named_parameters() if not name.startswith("final_norm")}
    assert [step for step, _ in calls] == [1, 2, 3]
    for _, parameters in calls:
        assert list(parameters) == list(expected)
        assert all(parameters[name] is one for name, one in expected.items())


def test_the_gradient_norm_is_nan_where_nothing_measures_it() -> None:
    assert math.isnan(float(run(make_model(), batches(1))[0].grad_norm))


def test_bf16_changes_the_numbers_a_little_and_leaves_weights_in_fp32() -> None:
    model, plain = make_model(), make_model()
    record = run(model, batches(1), precision="bf16")[0]
    expected = run(plain, batches(1))[0]
    assert float(record.loss) != float(expected.loss)
    assert float(record.loss) == pytest.approx(float(expected.loss), rel=1e-2)
    assert record.loss.dtype is torch.float32
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())


# The learning rates of the groups


def two_groups(model: nn.Module, **settings: Any) -> torch.optim.SGD:
    """Matrices at 0.2, everything else at 0.05."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return torch.optim.SGD([{"params": matrices, "lr": 0.2}, {"params": others, "lr": 0.05}], **settings)


def rates_of(optimizer: torch.optim.Optimizer) -> list[list[float]]:
    """Filled with the LRs of all groups at every step of the optimizer."""
    seen: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda one, *_: seen.append([group["lr"] for group in one.param_groups]))
    return seen


MULTIPLIERS = (0.25, 1.0, 0.5)


def test_the_rate_of_a_group_is_its_own_base_rate_times_the_multiplier() -> None:
    model, plain = make_model(), make_model()
    optimizer = two_groups(model)
    seen = rates_of(optimizer)
    records = list(train(model, batches(3), optimizer, lambda step: MULTIPLIERS[step]))
    assert seen == [[0.2 * multiplier, 0.05 * multiplier] for multiplier in MULTIPLIERS]
    assert [record.multiplier for record in records] == list(MULTIPLIERS)
    for step, multiplier in enumerate(MULTIPLIERS):
        plain.zero_grad()
        next_token_loss(plain, batch(step)).backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.add_(parameter.grad, alpha=-multiplier * (0.2 if parameter.ndim >= 2 else 0.05))
    assert same(weights(model), weights(plain))


def test_a_second_call_of_train_keeps_the_base_rates_of_the_optimizer() -> None:
    model = make_model()
    optimizer = two_groups(model)
    seen = rates_of(optimizer)
    list(train(model, batches(3), optimizer, lambda step: MULTIPLIERS[step]))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.025]  # where the first call left them
    list(train(model, batches(2), optimizer, lambda step: (1.0, 0.5)[step]))
    assert seen[3:] == [[0.2, 0.05], [0.1, 0.025]]


def test_a_restarted_optimizer_has_the_base_rates_that_it_was_saved_with() -> None:
    model = make_model()
    first = two_groups(model)
    list(train(model, batches(3), first, lambda step: MULTIPLIERS[step]))
    again = two_groups(make_model())
    again.load_state_dict(first.state_dict())
    seen = rates_of(again)
    list(train(make_model(), batches(1), again))
    assert seen == [[0.2, 0.05]]


def test_without_a_schedule_every_group_keeps_its_rate() -> None:
    model = make_model()
    optimizer = two_groups(model)
    seen = rates_of(optimizer)
    list(train(model, batches(2), optimizer))
    assert seen == [[0.2, 0.05]] * 2


def test_gradients_that_the_caller_left_are_no_part_of_the_first_step() -> None:
    model, clean = make_model(), make_model()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    run(model, batches(1))
    run(clean, batches(1))
    assert same(weights(model), weights(clean))


# The rules inside a step


class Term(Stateless):
    """A loss term of the mean square of the logits, which notes what it is called with."""

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight
        self.calls: list[tuple[int, Tensor, Tensor]] = []

    def __call__(self, step: int, logits: Tensor, targets: Tensor, log_z: LogZ) -> Tensor:
        self.calls.append((step, logits, targets))
        return self.weight * logits.square().mean()


def objective(record: StepRecord) -> Tensor:
    """What a step minimised."""
    return record.loss if record.penalty is None else record.loss + record.penalty


@pytest.mark.parametrize("accumulate", [1, 2])
def test_loss_terms_are_added_to_the_loss_and_to_its_gradient(accumulate: int) -> None:
    model, plain = make_model(), make_model()
    terms = [Term(0.1), Term(0.3)]
    records = run(model, batches(2, accumulate), rules=Rules(loss_terms=terms))
    for step in range(2):
        plain.zero_grad()
        total = 0.0
        for tokens in batch(step).chunk(accumulate):
            logits = plain(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss = (loss + 0.1 * logits.square().mean() + 0.3 * logits.square().mean()) / accumulate
            loss.backward()
            total += float(loss.detach())
        assert float(objective(records[step])) == pytest.approx(total, rel=1e-6)
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.add_(parameter.grad, alpha=-0.1)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    pieces = [(step + 1, piece) for step in range(2) for piece in batch(step).chunk(accumulate)]
    for term in terms:
        assert [called_at for called_at, _, _ in term.calls] == [step for step, _ in pieces]
        for (_, logits, targets), (_, tokens) in zip(term.calls, pieces, strict=True):
            assert logits.shape == (*targets.shape, 32)
            assert torch.equal(targets, tokens[:, 1:])


def test_a_term_of_a_micro_batch_counts_as_its_share_of_the_step() -> None:
    records = [run(make_model(), batches(1, pieces), rules=Rules(loss_terms=[Term(1.0)]))[0] for pieces in (1, 4)]
    assert float(objective(records[0])) == pytest.approx(float(objective(records[1])), rel=1e-5)
    assert records[0].penalty is not None
    assert float(records[0].penalty) > 0
    assert float(records[0].loss) == pytest.approx(float(run(make_model(), batches(1))[0].loss), rel=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rules_that_are_absent_leave_every_bit(precision: str) -> None:
    model, other = make_model(), make_model()
    one = run(model, batches(3, 2), precision=precision)
    two = run(other, batches(3, 2), precision=precision, rules=Rules())
    assert [float(record.loss) for record in one] == [float(record.loss) for record in two]
    assert same(weights(model), weights(other))


def test_the_held_out_loss_has_no_loss_terms() -> None:
    model = make_model()
    evaluation = Evaluation(loss=lambda: held_out_loss(model, batch(99), 4), after=(1,))
    record = run(model, batches(1), evaluation=evaluation, rules=Rules(loss_terms=[Term(10.0)]))[0]
    assert record.held_out_loss is not None
    assert float(record.held_out_loss) == pytest.approx(float(next_token_loss(model, batch(99)).detach()), rel=1e-5)


class Decides(Stateless):
    """A gate that gives the verdicts in turn, and notes what it sees."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = verdicts
        self.calls: list[tuple[int, float, float]] = []

    def __call__(self, step: int, loss: Tensor, grad_norm: Tensor) -> Verdict:
        self.calls.append((step, float(loss), float(grad_norm)))
        return self.verdicts[step - 1]


APPLY, SKIP, STOP = Verdict.APPLY, Verdict.SKIP, Verdict.STOP


def test_a_gate_that_applies_every_step_leaves_every_bit() -> None:
    model, other = make_model(), make_model()
    run(model, batches(3), rules=Rules(gate=Decides(APPLY, APPLY, APPLY)))
    run(other, batches(3))
    assert same(weights(model), weights(other))


def momentum(model: nn.Module, steps: list[tuple[Tensor, ...]], **options: Any) -> list[StepRecord]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    return list(train(model, steps, optimizer, **options))


def test_a_skipped_step_leaves_parameters_and_the_optimizer_alone_and_training_goes_on() -> None:
    model, other = make_model(), make_model()
    gate = Decides(APPLY, SKIP, APPLY)
    evaluation = Evaluation(loss=lambda: held_out_loss(model, batch(99), 4), after=range(4))
    records = momentum(model, batches(3), rules=Rules(gate=gate), evaluation=evaluation)
    momentum(other, [batches(3)[0], batches(3)[2]])
    assert same(weights(model), weights(other)), "as if the batch of the skipped step had not been"
    assert [record.step for record in records] == [0, 1, 2, 3]
    assert [record.verdict for record in records[1:]] == [APPLY, SKIP, APPLY]
    losses = [float(record.held_out_loss) for record in records if record.held_out_loss is not None]
    assert losses[1] == losses[2] != losses[3]


def test_the_schedule_goes_on_over_a_skipped_step() -> None:
    model = make_model()
    optimizer = two_groups(model)
    seen = rates_of(optimizer)
    rules = Rules(gate=Decides(APPLY, SKIP, APPLY))
    records = list(train(model, batches(3), optimizer, lambda step: MULTIPLIERS[step], rules))
    assert [record.multiplier for record in records] == list(MULTIPLIERS)
    assert seen == [[0.2 * multiplier, 0.05 * multiplier] for multiplier in (MULTIPLIERS[0], MULTIPLIERS[2])]


class Broken(Stateless):
    """Every gradient of one step is NaN."""

    def __call__(self, step: int, logits: Tensor, targets: Tensor, log_z: LogZ) -> Tensor:
        return logits.sum() * math.nan if step == 2 else logits.sum() * 0


class SkipsWhatIsNotFinite(Stateless):
    def __call__(self, step: int, loss: Tensor, grad_norm: Tensor) -> Verdict:
        return APPLY if bool(loss.isfinite() & grad_norm.isfinite()) else SKIP


def test_a_step_whose_gradients_are_nan_can_be_skipped() -> None:
    model, other = make_model(), make_model()
    clip_rule = GlobalClip().start(dict(model.named_parameters()))
    rules = Rules(loss_terms=[Broken()], gradient=[clip_rule], gate=SkipsWhatIsNotFinite())
    records = momentum(model, batches(3), rules=rules)
    assert [record.verdict for record in records] == [APPLY, SKIP, APPLY]
    assert math.isnan(float(objective(records[1])))
    assert math.isnan(float(records[1].grad_norm))
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    without = Rules(loss_terms=[Broken()], gradient=[GlobalClip().start(dict(other.named_parameters()))])
    assert math.isnan(float(momentum(other, batches(3), rules=without)[2].loss)), "nothing was broken"
    plain = make_model()
    plain_clip = GlobalClip().start(dict(plain.named_parameters()))
    momentum(plain, [batches(3)[0], batches(3)[2]], rules=Rules(gradient=[plain_clip]))
    for ours, expected in zip(weights(model), weights(plain), strict=True):  # with a term the loss is rounded otherwise
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


def test_a_gate_that_stops_ends_training_after_the_record_of_its_step() -> None:
    model, other = make_model(), make_model()
    evaluation = Evaluation(loss=lambda: held_out_loss(model, batch(99), 4), after=(2,))
    asked: list[int] = []

    def some():
        for step, micro_batches in enumerate(batches(4)):
            asked.append(step)
            yield micro_batches

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = Rules(gate=Decides(APPLY, STOP, APPLY, APPLY))
    records = list(train(model, some(), optimizer, rules=rules, evaluation=evaluation))
    assert [(record.step, record.verdict) for record in records] == [(1, APPLY), (2, STOP)]
    assert float(records[1].loss) > 0
    assert records[1].held_out_loss is not None
    assert asked == [0, 1], "a batch after the last step was asked for"
    run(other, batches(1))
    assert same(weights(model), weights(other)), "the optimizer stepped"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_gate_sees_the_loss_with_its_terms_and_the_norm_from_before_the_rules() -> None:
    model = make_model()
    gate = Decides(APPLY, APPLY)
    rules = Rules(
        loss_terms=[Term(1.0)],
        gradient=[GlobalClip(max_norm=1e-3).start(dict(model.named_parameters()))],
        gate=gate,
    )
    records = run(model, batches(2, 2), rules=rules)
    assert gate.calls == [(record.step, float(objective(record)), float(record.grad_norm)) for record in records]
    assert all(norm > 0.01 for _, _, norm in gate.calls)


def test_a_gate_without_a_rule_that_measures_sees_a_norm_of_nan() -> None:
    gate = Decides(APPLY)
    run(make_model(), batches(1), rules=Rules(gate=gate))
    assert math.isnan(gate.calls[0][2])


class Halves(Stateless):
    """Halves every matrix after the step, and notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[str, nn.Parameter]]] = []

    def __call__(self, step: int, parameters: Parameters) -> None:
        self.calls.append((step, dict(parameters)))
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.mul_(0.5)


def test_update_rules_alter_parameters_after_the_step_and_not_where_it_is_skipped() -> None:
    model, plain = make_model(), make_model()
    rule = Halves()
    run(model, batches(3), rules=Rules(gate=Decides(APPLY, SKIP, APPLY), update=[rule]))
    for step in (0, 2):
        plain.zero_grad()
        next_token_loss(plain, batch(step)).backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.add_(parameter.grad, alpha=-0.1)
                parameter.mul_(0.5)
    assert same(weights(model), weights(plain))
    assert [step for step, _ in rule.calls] == [1, 3]
    expected = dict(model.named_parameters())
    for _, parameters in rule.calls:
        assert list(parameters) == list(expected)
        assert all(parameters[name] is one for name, one in expected.items())


def test_update_rules_do_not_see_frozen_parameters() -> None:
    model = make_model()
    model.final_norm.requires_grad_(False)
    rule = Halves()
    run(model, batches(1), rules=Rules(update=[rule]))
    assert not any(name.startswith("final_norm") for name in rule.calls[0][1])
    assert torch.equal(model.final_norm.weight, torch.ones(16))  # pyright: ignore[reportArgumentType]


def test_no_update_rule_is_called_where_the_gate_stops() -> None:
    rule = Halves()
    run(make_model(), batches(2), rules=Rules(gate=Decides(STOP), update=[rule]))
    assert rule.calls == []


def test_the_rules_of_a_step_come_in_their_order() -> None:
    model = make_model()
    calls: list[str] = []

    class Says(Stateless):
        def __init__(self, name: str, answer: Any = None) -> None:
            self.name, self.answer = name, answer

        def __call__(self, *_: Any) -> Any:
            calls.append(self.name)
            return self.answer

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: calls.append("optimizer"))
    rules = Rules(
        loss_terms=[Says("term a", torch.tensor(0.0)), Says("term b", torch.tensor(0.0))],
        gradient=[Says("gradient a"), Says("gradient b")],
        gate=Says("gate", APPLY),
        update=[Says("update a"), Says("update b")],
    )

    def evaluate() -> Tensor:
        calls.append("evaluation")
        return torch.tensor(0.0)

    for _ in train(
        model,
        batches(1, 2),
        optimizer,
        rules=rules,
        evaluation=Evaluation(loss=evaluate, after=(0, 1)),
        after_backward=lambda: calls.append("after backward"),
    ):
        calls.append("record")
    assert calls == [
        *("evaluation", "record"),
        *("term a", "term b", "term a", "term b", "after backward"),
        *("gradient a", "gradient b", "gate", "optimizer", "update a", "update b"),
        *("evaluation", "record"),
    ]


def test_gradients_are_complete_after_backward_and_gone_after_the_step() -> None:
    model = make_model()
    seen: list[float] = []

    def look() -> None:
        seen.append(gradient_norm(list(model.parameters())))

    for record in train(model, batches(2, 4), torch.optim.SGD(model.parameters(), lr=0.0), after_backward=look):
        assert all(parameter.grad is None for parameter in model.parameters()), record.step
    for step, norm in enumerate(seen):
        next_token_loss(model, batch(step)).backward()
        assert norm == pytest.approx(gradient_norm(list(model.parameters())), rel=1e-4)
        model.zero_grad()


# The state of the rules


class Counts:
    """Any rule that counts its calls."""

    def before_step(self, *_: Any) -> None: ...

    def remove(self) -> None: ...

    def __init__(self, answer: Any = None) -> None:
        self.answer, self.count = answer, 0

    def __call__(self, *_: Any) -> Any:
        self.count += 1
        return self.answer

    def state_dict(self) -> dict[str, object]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.count = int(str(state["count"]))


class Other(Counts):
    pass


def counting(**kinds: Any) -> Rules:
    zero = torch.tensor(0.0)
    own = {"loss_terms": [Counts(zero)], "gradient": [Counts(), Other()], "gate": Counts(APPLY), "update": [Counts()]}
    return Rules(**(own | kinds))


def counts(rules: Rules) -> list[int]:
    gate = [] if rules.gate is None else [rules.gate]
    return [one.count for one in (*rules.loss_terms, *rules.gradient, *gate, *rules.update)]  # pyright: ignore


def test_the_state_of_all_rules_is_saved_and_restored() -> None:
    rules, again = counting(), counting()
    run(make_model(), batches(3, 2), rules=rules)
    assert counts(rules) == [6, 3, 3, 3, 3]
    again.load_state_dict(copy.deepcopy(rules.state_dict()))
    assert counts(again) == counts(rules)
    assert again.state_dict() == rules.state_dict()
    assert len(rules.state_dict()) == 5, "two rules share a place"


def test_no_rules_have_no_state() -> None:
    assert Rules().state_dict() == {}
    Rules().load_state_dict({})


@pytest.mark.parametrize(
    "others",
    [
        {"gate": None},
        {"update": []},
        {"gradient": [Other(), Counts()]},
        {"gradient": [Counts()]},
        {"loss_terms": [Other()]},
        {"update": [Counts(), Counts()]},
    ],
    ids=["no gate", "no update", "another order", "one fewer", "another kind", "one more"],
)
def test_the_state_of_other_rules_is_refused_and_nothing_is_loaded(others: dict[str, Any]) -> None:
    stored = counting(**others)
    rules = counting()
    run(make_model(), batches(3), rules=rules)
    before = counts(rules)
    with pytest.raises(ValueError, match=r"the state belongs to the rules .*, but these rules are"):
        rules.load_state_dict(stored.state_dict())
    assert counts(rules) == before


def test_rules_of_a_run_are_started_with_its_trained_parameters_by_name() -> None:
    started: list[dict[str, nn.Parameter]] = []

    @dataclass(frozen=True)
    class Own(GradientRule):
        source = Source(title="none", arxiv="", place="here", equation="g <- g")

        def start(self, parameters: Parameters) -> RunningRule:
            started.append(dict(parameters))
            return Counts()

    @dataclass(frozen=True)
    class Other(Own):
        pass

    model = make_model()
    model.final_norm.requires_grad_(False)
    spec = RunSpec(protocol=TrainingProtocol(common=(Own(),)), method=(GlobalClip(), Other()))
    rules = start_rules(model, torch.optim.SGD(model.parameters(), lr=0.1), spec)
    assert [type(rule) is Counts for rule in rules.gradient] == [True, False, True]
    assert (list(rules.loss_terms), rules.gate, list(rules.update)) == ([], None, [])
    expected = {name: one for name, one in model.named_parameters() if not name.startswith("final_norm")}
    for parameters in started:
        assert list(parameters) == list(expected)
        assert all(parameters[name] is one for name, one in expected.items())


# Clipping


def with_gradients(scale: float) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), ())]
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return parameters


def named(parameters: list[nn.Parameter]) -> dict[str, nn.Parameter]:
    return {f"parameter {index}": one for index, one in enumerate(parameters)}


def clip(parameters: list[nn.Parameter], **settings: float) -> Tensor | None:
    return GlobalClip(**settings).start(named(parameters))(1, named(parameters))


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    return math.sqrt(sum(float(g) ** 2 for p in parameters if p.grad is not None for g in p.grad.flatten()))


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 0.1, 1.0, 1e3, 1e15])
@pytest.mark.parametrize("max_norm", [0.01, 1.0, 50.0])
def test_global_clip_bounds_the_norm_as_torch_does(scale: float, max_norm: float) -> None:
    parameters, reference = with_gradients(scale), with_gradients(scale)
    before = gradient_norm(parameters)
    norm = clip(parameters, max_norm=max_norm)
    assert norm is not None
    assert norm.shape == ()
    assert float(norm) == pytest.approx(before, rel=1e-5)
    torch.nn.utils.clip_grad_norm_(reference, max_norm)
    for a, b in zip(parameters, reference, strict=True):
        assert torch.equal(a.grad, b.grad)  # pyright: ignore[reportArgumentType]
    assert gradient_norm(parameters) <= max_norm * (1 + 1e-5)
    assert gradient_norm(parameters) == pytest.approx(min(before, max_norm), rel=1e-3)


def test_a_small_gradient_passes_the_clip_bit_for_bit() -> None:
    parameters, same = with_gradients(1e-3), with_gradients(1e-3)
    clip(parameters)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(parameters, same, strict=True))  # pyright: ignore


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_gradient_is_never_hidden_by_the_clip(value: float) -> None:
    parameters = with_gradients(1.0)
    parameters[1].grad[0] = value  # pyright: ignore[reportOptionalSubscript]
    norm = clip(parameters)
    assert not math.isfinite(float(norm))  # pyright: ignore[reportArgumentType]
    assert any(not bool(p.grad.isfinite().all()) for p in parameters)  # pyright: ignore[reportOptionalMemberAccess]
    if math.isnan(value):
        assert all(bool(p.grad.isnan().all()) for p in parameters)  # pyright: ignore[reportOptionalMemberAccess]


def test_the_clip_ignores_parameters_without_a_gradient() -> None:
    parameters = [*with_gradients(1.0), nn.Parameter(torch.zeros(2))]
    clip(parameters)
    assert parameters[-1].grad is None
    same_without = with_gradients(1.0)
    clip(same_without)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(parameters, same_without, strict=False))  # pyright: ignore


def test_the_clip_keeps_no_state_and_refuses_one() -> None:
    parameters = named(with_gradients(1.0))
    rule = GlobalClip().start(parameters)
    assert rule.state_dict() == {}
    rule.load_state_dict({})
    with pytest.raises(ValueError, match="global_clip keeps no state"):
        rule.load_state_dict({"norm": 1.0})


# The schedule

COSINE: Callable[[float], float] = lambda p: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * p))  # noqa: E731
LINEAR: Callable[[float], float] = lambda p: 0.1 + 0.9 * (1 - p)  # noqa: E731


@pytest.mark.parametrize(("shape", "curve"), [("cosine", COSINE), ("linear", LINEAR), ("constant", lambda p: 1.0)])
def test_the_schedule_rises_to_its_peak_and_follows_its_curve(shape: str, curve: Callable[[float], float]) -> None:
    schedule = ScheduleConfig(shape=shape, warmup_steps=4, floor=0.1)  # pyright: ignore[reportArgumentType]
    factors = [schedule.factor(step, 24) for step in range(24)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == pytest.approx([curve(i / 19) for i in range(20)])
    assert factors[-1] == pytest.approx(1.0 if shape == "constant" else 0.1)
    assert max(factors) == factors[4] == 1.0


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup_steps", "num_steps"), [(0, 1), (0, 2), (1, 2), (9, 10)])
def test_the_shortest_schedules_stay_between_zero_and_one(shape: str, warmup_steps: int, num_steps: int) -> None:
    schedule = ScheduleConfig(shape=shape, warmup_steps=warmup_steps, floor=0.0)  # pyright: ignore[reportArgumentType]
    factors = [schedule.factor(step, num_steps) for step in range(num_steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[warmup_steps] == 1.0


def test_a_schedule_that_cannot_be_is_refused() -> None:
    for settings in ({"warmup_steps": -1}, {"floor": 1.1}, {"floor": math.nan}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ScheduleConfig(**settings)  # pyright: ignore[reportArgumentType]
