"""Rules attached to the optimizer of a plain training loop: what they see, what is refused, and their state."""

from __future__ import annotations

import copy
import io
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab import GPT, GPTConfig, host_for, methods, optim, optimizer_for, rules
from trimtab.gradients import Gradients
from trimtab.host import SiteUnavailableError
from trimtab.intervention import ConflictError
from trimtab.interventions import AdaGC, GlobalClip, LogitCap, QKClip, UpdateClip, ZClip, ZLoss
from trimtab.loss import next_token_loss
from trimtab.rules import RulesError

CONFIG = GPTConfig(vocab_size=32, context=8, num_layers=2, num_heads=2, width=16)


def make_model() -> GPT:
    torch.manual_seed(3)
    return GPT(CONFIG)


def batch(seed: int) -> Tensor:
    return torch.randint(0, 32, (4, 9), generator=torch.Generator().manual_seed(seed))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    next_token_loss(model, batch(seed)).backward()
    optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_an_attached_clip_is_the_clip_of_torch() -> None:
    model, plain = make_model(), make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attached = rules.attach(optimizer, model, [GlobalClip(max_norm=0.1)])
    other = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    for seed in range(4):
        step(model, optimizer, seed)
        other.zero_grad()
        next_token_loss(plain, batch(seed)).backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        other.step()
        assert attached.grad_norm is not None
        assert float(attached.grad_norm) == pytest.approx(float(norm), rel=1e-6)
    assert same(model, plain)
    assert attached.steps == 4


def test_without_rules_attached_nothing_is_left() -> None:
    model, plain = make_model(), make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attached = rules.attach(optimizer, model, [AdaGC(warmup_steps=1), QKClip(threshold=1e-3), UpdateClip()])
    attached.remove()
    other = torch.optim.SGD(plain.parameters(), lr=0.1)
    for seed in range(3):
        step(model, optimizer, seed)
        step(plain, other, seed)
    assert same(model, plain)
    assert "trimtab_rules" not in optimizer.state_dict()["param_groups"][0]


def test_the_state_survives_a_file_that_holds_weights_only() -> None:
    model = make_model()
    optimizer = optimizer_for(model, optim.Muon(), 1e-2)
    rules.attach(optimizer, model, [AdaGC(warmup_steps=2), UpdateClip()])
    for seed in range(4):
        step(model, optimizer, seed)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    for attach_first in (True, False):
        file.seek(0)
        stored = torch.load(file, weights_only=True)
        again = make_model()
        restored = optimizer_for(again, optim.Muon(), 1e-2)
        attached = rules.attach(restored, again, [AdaGC(warmup_steps=2), UpdateClip()]) if attach_first else None
        again.load_state_dict(stored["model"])
        restored.load_state_dict(stored["optimizer"])
        if attached is None:
            attached = rules.attach(restored, again, [AdaGC(warmup_steps=2), UpdateClip()])
        assert attached.steps == 4
        ahead = copy.deepcopy(model)
        assert same(again, ahead)
        reference = make_model()
        second = optimizer_for(reference, optim.Muon(), 1e-2)
        rules.attach(second, reference, [AdaGC(warmup_steps=2), UpdateClip()])
        for seed in range(6):
            step(reference, second, seed)
        for seed in (4, 5):
            step(again, restored, seed)
        assert same(again, reference)


def test_a_state_without_rules_is_loaded_with_a_warning_and_that_of_others_is_refused() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = optimizer.state_dict()
    attached = rules.attach(optimizer, model, [ZClip()])
    with pytest.warns(UserWarning, match="no state of rules; they begin anew"):
        optimizer.load_state_dict(plain)
    stored = optimizer.state_dict()
    attached.remove()
    rules.attach(optimizer, model, [AdaGC()])
    with pytest.raises(ValueError, match="the state belongs to the rules z_clip, and these are ada_gc"):
        optimizer.load_state_dict(stored)


def test_an_early_state_of_other_rules_is_refused_and_nothing_is_attached() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attached = rules.attach(optimizer, model, [ZClip()])
    stored = optimizer.state_dict()
    attached.remove()
    optimizer.load_state_dict(stored)
    with pytest.raises(ValueError, match="the state belongs to the rules z_clip, and these are ada_gc"):
        rules.attach(optimizer, model, [AdaGC()])
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_state_dict_post_hooks
    assert rules.attach(optimizer, model, [ZClip()]).names == ["z_clip"]


def test_a_frozen_parameter_has_no_rule_and_one_that_the_optimizer_lacks_is_named() -> None:
    model = make_model()
    model.final_norm.requires_grad_(False)
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if "head" not in n], lr=0.1)
    attached = rules.attach(optimizer, model, [GlobalClip()])
    assert not any(name.startswith("final_norm") for name in attached.parameters)
    attached.remove()
    some = torch.optim.SGD(model.blocks.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"no rule acts on token_embedding\.weight"):
        rules.attach(some, model, [GlobalClip()])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there are no rules"),
        ([ZLoss()], "z_loss is a term of the loss"),
        ([LogitCap()], "logit_cap alters the model"),
        ([AdaGC], "is no rule"),
        ([AdaGC(), GlobalClip()], "ada_gc replaces global_clip"),
        ([AdaGC(), ZClip()], "replaces"),
        ([GlobalClip(), GlobalClip(max_norm=2.0)], "global_clip would be applied twice"),
    ],
    ids=str,
)
def test_what_cannot_be_attached_is_refused_and_nothing_is_attached(given: list[Any], message: str) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises((RulesError, ConflictError), match=message):
        rules.attach(optimizer, model, given)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(RulesError, match="holds none of the model's parameters"):
        rules.attach(torch.optim.SGD(make_model().parameters(), lr=0.1), make_model(), [GlobalClip()])


def test_a_step_with_a_closure_is_refused_before_anything_is_done() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules.attach(optimizer, model, [GlobalClip()])
    before = weights(model)
    with pytest.raises(RulesError, match="given a closure"):
        optimizer.step(lambda: 0.0)
    with pytest.raises(RulesError, match="given a closure"):
        optimizer.step(closure=lambda: 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_a_gradient_scaler_must_have_unscaled_the_gradients(fused: bool) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    attached = rules.attach(optimizer, model, [GlobalClip(max_norm=1e9)])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(next_token_loss(model, batch(0))).backward()
    if fused:  # torch's fused optimizers unscale within their step
        with pytest.raises(RulesError, match=r"scaler\.unscale_"):
            scaler.step(optimizer)
        return
    scaler.step(optimizer)
    plain = make_model()
    next_token_loss(plain, batch(0)).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in plain.parameters() if p.grad is not None])
    assert float(attached.grad_norm) == pytest.approx(float(norm), rel=1e-4)  # pyright: ignore[reportArgumentType]


def test_rules_act_with_a_scaler_that_has_unscaled() -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    attached = rules.attach(optimizer, model, [AdaGC(warmup_steps=1)])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(3):
        optimizer.zero_grad()
        scaler.scale(next_token_loss(model, batch(seed))).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert attached.steps == 3


def test_a_compiled_and_a_wrapped_model_is_seen_through() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attached = rules.attach(optimizer, torch.compile(model), [QKClip()])  # pyright: ignore[reportArgumentType]
    assert list(attached.parameters) == [name for name, _ in model.named_parameters()]


def test_qk_clip_refuses_a_model_that_no_host_knows() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(SiteUnavailableError, match="no host knows this Linear"):
        rules.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, [QKClip()])


def test_a_rule_without_a_host_acts_on_any_model() -> None:
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules.attach(optimizer, model, [AdaGC(max_norm=1e-2)])
    before = weights(model)
    F.cross_entropy(model(torch.arange(8)), torch.arange(8)).backward()
    optimizer.step()
    moved = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, model.parameters(), strict=True)]).norm()
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)


def test_a_run_with_a_rule_and_the_one_that_it_replaces_is_refused_with_the_remedy() -> None:
    from trimtab.config import ConfigError
    from trimtab.data import Classics
    from trimtab.run.check import check_run
    from trimtab.run.reading import read_run

    tables = {"learning_rate": 0.01, "method": "ada_gc", "model": {"width": 16, "num_layers": 1, "num_heads": 2}}
    with pytest.raises(ConfigError, match=r"arm: ada_gc replaces global_clip, .*common = \[\] for this arm"):
        check_run(read_run(tables, "arm"), Classics().load(), "arm")
    check_run(read_run({**tables, "common": []}, "arm"), Classics().load(), "arm")


# One norm pass


def test_all_rules_of_a_step_share_one_norm_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    plain = torch._foreach_norm  # pyright: ignore

    def counted(*arguments: Any, **more: Any) -> Any:
        passes.append(1)
        return plain(*arguments, **more)

    monkeypatch.setattr(torch, "_foreach_norm", counted)
    parameters = {name: nn.Parameter(torch.zeros(4)) for name in "ab"}
    for p in parameters.values():
        p.grad = torch.randn(4)
    gradients = Gradients(parameters)
    first, second = GlobalClip(max_norm=0.1).start(parameters), GlobalClip(max_norm=0.01).start(parameters)
    first(1, gradients)
    norm = second(1, gradients)
    assert len(passes) == 1
    assert float(norm) == pytest.approx(0.1, rel=1e-4)  # pyright: ignore[reportArgumentType]
    parameters["a"].grad.mul_(2.0)  # pyright: ignore[reportOptionalMemberAccess]
    grads = [p.grad for p in parameters.values() if p.grad is not None]
    assert float(gradients.total()) == pytest.approx(float(torch.cat(grads).norm()), rel=1e-5)
    assert len(passes) == 2, "a gradient was changed by someone else, and the old norms were given"


def test_a_gradient_that_is_lost_becomes_zero_by_a_select() -> None:
    parameters = {"a": nn.Parameter(torch.zeros(3)), "b": nn.Parameter(torch.zeros(3))}
    parameters["a"].grad = torch.tensor([1.0, math.nan, math.inf])
    parameters["b"].grad = torch.ones(3)
    gradients = Gradients(parameters)
    gradients.scale(torch.tensor(2.0), ~gradients.norms().isfinite())
    assert torch.equal(parameters["a"].grad, torch.zeros(3))
    assert torch.equal(parameters["b"].grad, torch.full((3,), 2.0))
    assert gradients.norms().tolist() == pytest.approx([0.0, math.sqrt(12)])


# Terms of the loss


def test_a_term_in_a_loop_of_ones_own_is_that_of_train() -> None:
    logits = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 7, (2, 5))
    targets[1, 3:] = -100  # padding
    value = rules.term(ZLoss(coefficient=0.5), logits, targets)
    log_z = logits.float().logsumexp(-1)[targets >= 0]
    assert float(value.detach()) == pytest.approx(0.5 * float(log_z.square().mean().detach()), rel=1e-6)
    value.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[1, 3:], torch.zeros(2, 7, dtype=torch.float64))


def test_z_loss_does_not_change_what_is_recorded_and_shifts_no_optimum_of_softmax() -> None:
    from trimtab.loop import Rules, train

    model, plain = make_model(), make_model()
    terms = Rules(loss_terms=[ZLoss(coefficient=1.0).start()])
    record = next(iter(train(model, [[batch(0)]], torch.optim.SGD(model.parameters(), lr=0.0), rules=terms)))
    expected = float(next_token_loss(plain, batch(0)).detach())
    assert float(record.loss) == pytest.approx(expected, rel=1e-6)
    logits = plain(batch(0)[:, :-1])
    assert record.penalty is not None
    assert float(record.penalty) == pytest.approx(float(logits.logsumexp(-1).square().mean().detach()), rel=1e-5)


def test_the_loss_with_terms_has_the_gradient_of_cross_entropy_and_of_log_z() -> None:
    from trimtab.loss import _LossAndLogZ

    torch.manual_seed(0)
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 5, (6,))
    assert torch.autograd.gradcheck(lambda x: _LossAndLogZ.apply(x, targets)[:2], (logits,))
    each, log_z, _ = _LossAndLogZ.apply(logits, targets)
    torch.testing.assert_close(each, torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    torch.testing.assert_close(log_z, logits.logsumexp(-1))


def test_every_term_gets_the_same_log_z() -> None:
    from trimtab.loss import losses_of

    asked: list[int] = []

    class Asks:
        def __init__(self, times: int) -> None:
            self.times = times

        def __call__(self, step: int, logits: Tensor, targets: Tensor, log_z: Any) -> Tensor:
            asked.extend(id(log_z()) for _ in range(self.times))
            return logits.sum() * 0

    model = make_model()
    losses_of(model, batch(0), [Asks(2), Asks(1)], 1)  # pyright: ignore[reportArgumentType]
    assert len(set(asked)) == 1


def test_the_cap_of_logits_bounds_them_and_is_a_conflict_where_the_family_has_one() -> None:
    from trimtab.testing.families import hugging_face

    model = make_model()
    with torch.no_grad():
        model.token_embedding.weight.mul_(500)
    method = methods.logit_cap
    with method.applied(host_for(model)):
        assert float(model(batch(0)[:, :-1]).detach().abs().max()) <= 30.0
    assert float(model(batch(0)[:, :-1]).detach().abs().max()) > 30.0
    with pytest.raises(ConflictError, match="logit_cap built in"):
        method.install(host_for(hugging_face("gemma2")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method.install(host_for(hugging_face("gemma2", final_logit_softcapping=None)))
