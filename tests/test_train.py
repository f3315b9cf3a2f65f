"""The loop, its parameter groups, its schedule and its clipping, each against a few lines written out by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trimtab
from trimtab import GPT, GPTConfig
from trimtab.interventions import GlobalClip
from trimtab.loop import StepRecord, held_out_loss, next_token_loss, train
from trimtab.optim import OptimizerConfig, ScheduleConfig, adamw

CONFIG = GPTConfig(vocab_size=32, context=8, num_layers=1, num_heads=2, width=16)


def make_model() -> GPT:
    torch.manual_seed(3)
    return GPT(CONFIG)


def batch(seed: int, size: int = 8) -> Tensor:
    return torch.randint(0, 32, (size, 9), generator=torch.Generator().manual_seed(seed))


def batches(num_steps: int, accumulate: int = 1) -> list[tuple[Tensor, ...]]:
    return [batch(step).chunk(accumulate) for step in range(num_steps)]


def run(model: nn.Module, steps: list[tuple[Tensor, ...]], lr: float = 0.1, **options: object) -> list[StepRecord]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return list(train(model, steps, optimizer, learning_rate=lambda _: lr, **options))  # pyright: ignore[reportArgumentType]


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


def test_steps_are_counted_from_one_and_the_learning_rate_from_zero() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    records = list(train(model, batches(3), optimizer, learning_rate=lambda step: 0.1 * (step + 1)))
    assert [record.step for record in records] == [1, 2, 3]
    assert [record.learning_rate for record in records] == pytest.approx([0.1, 0.2, 0.3])


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

    records = run(model, batches(4), evaluate=evaluate, evaluate_after=(0, 2, 4, 9))
    assert [record.step for record in records] == [0, 1, 2, 3, 4]
    assert [record.step for record in records if record.held_out_loss is not None] == [0, 2, 4]
    assert math.isnan(float(records[0].loss))
    assert records[0].learning_rate == 0.0
    assert torch.equal(seen[0], next(make_model().parameters()))
    assert torch.equal(seen[-1], next(model.parameters()))
    assert not torch.equal(seen[0], seen[1])


def test_no_evaluation_before_training_unless_asked_for() -> None:
    model = make_model()
    records = run(model, batches(2), evaluate=lambda: torch.tensor(0.0), evaluate_after=(2,))
    assert [record.step for record in records] == [1, 2]


def test_evaluating_does_not_change_the_training() -> None:
    model, other = make_model(), make_model()
    run(model, batches(3), evaluate=lambda: held_out_loss(model, batch(99), 4), evaluate_after=range(4))
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


def test_gradient_rules_run_in_order_before_the_step_and_the_first_norm_is_recorded() -> None:
    model = make_model()
    calls: list[str] = []

    class Rule:
        def __init__(self, name: str, norm: float | None) -> None:
            self.name, self.norm = name, norm

        def __call__(self) -> Tensor | None:
            calls.append(self.name)
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.zero_()
            return None if self.norm is None else torch.tensor(self.norm)

        def state_dict(self) -> dict[str, object]:
            return {}

        def load_state_dict(self, state: dict[str, object]) -> None:
            pass

    before = copy.deepcopy(list(model.parameters()))
    records = run(model, batches(1), gradient_rules=[Rule("a", None), Rule("b", 2.0), Rule("c", 3.0)])
    assert calls == ["a", "b", "c"]
    assert float(records[0].grad_norm) == 2.0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


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


# Clipping


def with_gradients(scale: float) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), ())]
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return parameters


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    return math.sqrt(sum(float(g) ** 2 for p in parameters if p.grad is not None for g in p.grad.flatten()))


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 0.1, 1.0, 1e3, 1e15])
@pytest.mark.parametrize("max_norm", [0.01, 1.0, 50.0])
def test_global_clip_bounds_the_norm_as_torch_does(scale: float, max_norm: float) -> None:
    parameters, reference = with_gradients(scale), with_gradients(scale)
    before = gradient_norm(parameters)
    norm = GlobalClip(max_norm=max_norm).start(parameters)()
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
    GlobalClip().start(parameters)()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(parameters, same, strict=True))  # pyright: ignore


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_gradient_is_never_hidden_by_the_clip(value: float) -> None:
    parameters = with_gradients(1.0)
    parameters[1].grad[0] = value  # pyright: ignore[reportOptionalSubscript]
    norm = GlobalClip().start(parameters)()
    assert not math.isfinite(float(norm))  # pyright: ignore[reportArgumentType]
    assert any(not bool(p.grad.isfinite().all()) for p in parameters)  # pyright: ignore[reportOptionalMemberAccess]
    if math.isnan(value):
        assert all(bool(p.grad.isnan().all()) for p in parameters)  # pyright: ignore[reportOptionalMemberAccess]


def test_the_clip_ignores_parameters_without_a_gradient() -> None:
    parameters = [*with_gradients(1.0), nn.Parameter(torch.zeros(2))]
    GlobalClip().start(parameters)()
    assert parameters[-1].grad is None


# Parameter groups and decay


def test_matrices_decay_and_nothing_else_does() -> None:
    model = make_model()
    optimizer = adamw(model, OptimizerConfig(weight_decay=0.3), 1e-3)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(p): 0.3 if p.ndim >= 2 else 0.0 for p in model.parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay)


def test_exempt_and_frozen_parameters_are_left_alone() -> None:
    model = make_model()
    model.final_norm.requires_grad_(False)
    spared = model.blocks[0].mlp.fc1.weight
    optimizer = adamw(model, OptimizerConfig(), 1e-3, exempt={spared})
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(spared)] == 0.0
    assert all(id(p) not in decay for p in model.final_norm.parameters())


def test_a_model_of_matrices_alone_gets_an_optimizer() -> None:
    optimizer = adamw(nn.Linear(2, 2, bias=False), OptimizerConfig(), 1e-3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]


@pytest.mark.parametrize("decay", ["coupled", "independent"])
def test_one_step_of_adamw_follows_the_formula(decay: str) -> None:
    peak, now, wd = 0.5, 0.2, 0.1
    layer = nn.Linear(3, 2)
    config = OptimizerConfig(beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=wd, decay=decay)  # pyright: ignore[reportArgumentType]
    optimizer = adamw(layer, config, peak)
    for group in optimizer.param_groups:
        group["lr"] = now
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    gradients = [torch.randn_like(weight), torch.randn_like(bias)]
    layer.weight.grad, layer.bias.grad = gradients[0].float(), gradients[1].float()
    optimizer.step()
    # After one step the bias-corrected moments are the gradient and its square.
    update = [g / (g.abs() + config.eps) for g in gradients]
    shrink = now * wd if decay == "coupled" else wd * now / peak
    assert torch.allclose(layer.weight.double(), weight * (1 - shrink) - now * update[0], atol=1e-6)
    assert torch.allclose(layer.bias.double(), bias - now * update[1], atol=1e-6)


def test_independent_decay_does_not_depend_on_the_peak() -> None:
    def shrunk(peak: float) -> float:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(layer.weight)
        optimizer = adamw(layer, OptimizerConfig(decay="independent", weight_decay=0.1), peak)
        layer.weight.grad = torch.zeros(1, 1)
        optimizer.step()
        return float(layer.weight.detach())

    assert shrunk(1e-4) == pytest.approx(0.9)
    assert shrunk(4.0) == pytest.approx(0.9)


@pytest.mark.parametrize(
    "settings",
    [{"beta1": 1.0}, {"beta2": -0.1}, {"eps": -1.0}, {"weight_decay": math.inf}, {"weight_decay": math.nan}],
    ids=str,
)
def test_an_optimizer_that_cannot_be_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        OptimizerConfig(**settings)  # pyright: ignore[reportArgumentType]


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
