"""Every rule against an independent float64 oracle over 300 steps with spikes, NaN, zeros and late tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.rules import oracles
from trimtab.intervention import GradientRule, Trained
from trimtab.interventions import AdaGC, UpdateClip, ZClip, ZLoss
from trimtab.interventions.qk_clip import QKClip
from trimtab.optim.matrices import OrthogonalMomentum, orthogonalized
from trimtab.optim.stable_adamw import StableAdamWOptimizer

TOLERANCE = 1e-6
Oracle = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def parameters_of(steps: list[Any], dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    shapes = {name: g.shape for step in steps for name, g in step.items() if g is not None}
    order = list(steps[0])
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shapes[name], generator=generator).to(dtype)) for name in order}


def give(parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Any]) -> None:
    for name, p in parameters.items():
        g = gradients[name]
        p.grad = None if g is None else torch.from_numpy(np.array(g)).to(p.dtype)


def distance(found: Tensor, expected: Any) -> float:
    """Largest difference relative to the largest entry; exact where the expected values are zero or not finite."""
    wanted = torch.from_numpy(np.array(expected, dtype=np.float64))
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    if scale == 0:
        return float(found.abs().max())
    return float((found.double() - wanted).abs().max()) / scale


CASES: dict[str, tuple[GradientRule, Oracle, bool]] = {
    "ada_gc": (AdaGC(), oracles.AdaGCOracle(), False),
    "ada_gc as published": (AdaGC.as_published(), oracles.AdaGCOracle.as_published(), False),
    "ada_gc, the published text": (AdaGC.as_published(), oracles.PublishedAdaGC(), True),
    "ada_gc, global": (AdaGC(scope="global"), oracles.AdaGCOracle(scope="global"), False),
    "ada_gc, other settings": (
        AdaGC(ratio=1.5, beta=0.9, warmup_steps=20, max_norm=3.0, warmup_floor=0.9),
        oracles.AdaGCOracle(ratio=1.5, beta=0.9, warmup_steps=20, max_norm=3.0, warmup_floor=0.9),
        False,
    ),
    "z_clip": (ZClip(), oracles.ZClipOracle(), False),
    "z_clip, no cap": (ZClip(max_norm=1e9), oracles.ZClipOracle(max_norm=1e9), False),
    "z_clip as published": (ZClip.as_published(), oracles.ZClipOracle(), True),
}


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_rule_follows_its_oracle_over_300_steps(name: str) -> None:
    rule, oracle, finite = CASES[name]
    steps = oracles.scenario(300, finite=finite)
    parameters = parameters_of(steps)
    running = rule.start(parameters)
    changed = 0
    for number, gradients in enumerate(steps, start=1):
        give(parameters, gradients)
        running(number, parameters)
        expected = oracle(gradients)
        for key, p in parameters.items():
            if gradients[key] is None:
                assert p.grad is None
                continue
            assert p.grad is not None
            assert distance(p.grad, expected[key]) < TOLERANCE, f"{name}: {key} at step {number}"
            changed += not np.array_equal(np.array(expected[key]), np.array(gradients[key]))
    assert changed > 40, "the oracle hardly acts in this scenario"


def test_a_tensor_whose_gradient_was_zero_once_is_frozen_as_published_and_not_by_default() -> None:
    frozen: dict[str, int] = {}
    for name, rule in (("published", AdaGC.as_published()), ("ours", AdaGC())):
        weight = nn.Parameter(torch.zeros(3))
        running = rule.start({"w": weight})
        still = 0
        for step in range(1, 1001):
            weight.grad = torch.zeros(3) if step == 5 else torch.ones(3)
            running(step, {"w": weight})
            still += step > 100 and not bool(weight.grad.any())
        frozen[name] = still
    assert frozen == {"published": 900, "ours": 0}


def test_one_small_norm_in_the_warm_up_does_not_keep_a_tensor_clipped_for_thousands_of_steps() -> None:
    clipped: dict[str, int] = {}
    for name, rule in (("published", AdaGC.as_published()), ("ours", AdaGC())):
        weight = nn.Parameter(torch.zeros(1))
        running = rule.start({"w": weight})
        count = 0
        for step in range(1, 6001):
            norm = 0.1 if step == 5 else 0.5
            weight.grad = torch.tensor([norm])
            running(step, {"w": weight})
            count += step > 100 and float(weight.grad) < 0.999 * norm
        clipped[name] = count
    assert clipped["published"] > 3800
    assert clipped["ours"] < 1700


def test_z_clip_goes_on_after_a_norm_that_is_not_finite() -> None:
    weight = nn.Parameter(torch.zeros(2))
    running = ZClip(max_norm=1e9).start({"w": weight})
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 100):
        weight.grad = torch.tensor([1.0, 0.0]) + 0.01 * torch.randn(2, generator=generator)
        if step == 50:
            weight.grad = torch.tensor([float("inf"), 1.0])
        if step == 90:
            weight.grad = torch.tensor([100.0, 0.0])
        running(step, {"w": weight})
        if step == 50:
            assert not bool(weight.grad.any())
    assert bool(weight.grad.isfinite().all())  # pyright: ignore[reportOptionalMemberAccess]
    weight.grad = torch.tensor([100.0, 0.0])
    running(100, {"w": weight})
    assert float(weight.grad.norm()) < 1.2


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_stable_adamw_follows_its_oracle_over_300_steps(weight_decay: float) -> None:
    steps = oracles.scenario(300, finite=True)
    parameters = parameters_of(steps, torch.float64)
    weights: dict[str, Any] = {name: p.detach().numpy().copy() for name, p in parameters.items()}
    optimizer = StableAdamWOptimizer([{"params": list(parameters.values()), "weight_decay": weight_decay}], 2e-3)
    oracle = oracles.StableAdamWOracle(lr=2e-3, weight_decay=weight_decay)
    for number, gradients in enumerate(steps, start=1):
        give(parameters, gradients)
        optimizer.step()
        weights = dict(oracle.step(weights, gradients))
        for key, p in parameters.items():
            assert distance(p.detach(), weights[key]) < TOLERANCE, f"{key} at step {number}"


@pytest.mark.parametrize("finite", [True, False])
def test_update_clip_follows_its_oracle_over_300_steps(finite: bool) -> None:
    """Of plain gradient descent with AdamW's decay; a gradient that is not finite leaves the decay alone."""
    steps = oracles.scenario(300, finite=finite)
    parameters = parameters_of(steps, torch.float64)
    lr, decay = 1e-3, 0.1
    optimizer = torch.optim.SGD(parameters.values(), lr=lr)
    optimizer.param_groups[0]["decoupled_weight_decay"] = True
    optimizer.param_groups[0]["weight_decay"] = 0.0
    running = UpdateClip().start(Trained(model=nn.Module(), parameters=parameters, optimizer=optimizer))
    oracle = oracles.UpdateClipOracle()
    weights: dict[str, Any] = {name: p.detach().numpy().copy() for name, p in parameters.items()}
    for number, gradients in enumerate(steps, start=1):
        give(parameters, gradients)
        running.before_step(number, parameters)
        with torch.no_grad():
            for p in parameters.values():
                if p.grad is not None:
                    p.mul_(1 - lr * decay).add_(p.grad, alpha=-lr)
        optimizer.param_groups[0]["weight_decay"] = decay
        running(number, parameters)
        new: dict[str, Any] = {}
        for key, old in weights.items():
            g = gradients[key]
            new[key] = old if g is None else old * (1 - lr * decay) - lr * np.array(g, dtype=np.float64)
        weights = dict(oracle.limit(weights, new, gradients, dict.fromkeys(weights, lr * decay)))
        for key, p in parameters.items():
            assert bool(p.isfinite().all()), f"{key} at step {number}"
            assert distance(p.detach(), weights[key]) < TOLERANCE, f"{key} at step {number}"


def test_update_clip_on_adamw_is_stable_adamw() -> None:
    steps = oracles.scenario(120, finite=True)
    one, other = parameters_of(steps, torch.float64), parameters_of(steps, torch.float64)
    settings = {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.2}
    adamw = torch.optim.AdamW(one.values(), lr=2e-3, foreach=False, **settings)
    running = UpdateClip(eps=1e-6).start(Trained(model=nn.Module(), parameters=one, optimizer=adamw))
    stable = StableAdamWOptimizer([{"params": list(other.values()), **settings}], 2e-3)
    for number, gradients in enumerate(steps, start=1):
        give(one, gradients)
        give(other, gradients)
        running.before_step(number, one)
        adamw.step()
        running(number, one)
        stable.step()
        for key, p in one.items():
            assert torch.allclose(p, other[key], rtol=1e-9, atol=1e-12), f"{key} at step {number}"


@pytest.mark.parametrize("shape", [(6, 6), (8, 5), (5, 8)], ids=str)
def test_muon_h_follows_its_oracle(shape: tuple[int, int]) -> None:
    """The Newton-Schulz iteration runs in bf16, which the oracle does not have: within 2 % of the step."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = OrthogonalMomentum([{"params": [weight], "keep_norm": True}], lr=0.02)
    expected, momentum = weight.detach().double().numpy().copy(), np.zeros(shape)
    norm = float(weight.detach().norm())
    for _ in range(20):
        gradient = torch.randn(shape, generator=generator)
        weight.grad = gradient.clone()
        optimizer.step()
        expected, momentum = oracles.muon_h_step(expected, momentum, gradient.double().numpy(), 0.02)
        assert float(weight.detach().norm()) == pytest.approx(norm, rel=1e-5)
    moved = np.linalg.norm(weight.detach().double().numpy() - expected)
    assert moved < 0.02 * 20 * 0.02 * norm


@pytest.mark.parametrize("shape", [(6, 6), (8, 5), (5, 8)], ids=str)
def test_newton_schulz_follows_its_oracle_up_to_bf16(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = orthogonalized(matrix, 5).double()
    expected = torch.from_numpy(oracles.newton_schulz(matrix.double().numpy()))
    assert float((found - expected).norm() / expected.norm()) < 0.03
    stacked = orthogonalized(torch.stack((matrix, 2 * matrix)), 5)
    assert torch.allclose(stacked[0].double(), found, atol=2e-2)
    assert torch.allclose(stacked[1].double(), found, atol=2e-2)


def test_z_loss_follows_its_oracle() -> None:
    logits = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.zeros(2, 3, dtype=torch.long)
    value = ZLoss(coefficient=0.3).start()(1, logits, targets, lambda: logits.logsumexp(-1))
    value.backward()
    assert float(value.detach()) == pytest.approx(oracles.z_loss(logits.detach().numpy(), 0.3), rel=1e-12)
    expected = oracles.z_loss_gradient(logits.detach().numpy(), 0.3)
    assert np.allclose(logits.grad.numpy(), expected, rtol=1e-10)  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_factors_of_qk_clip_follow_their_oracle(alpha: float) -> None:
    from trimtab.interventions.qk_clip import _Clip  # pyright: ignore[reportPrivateUsage]

    maxima = torch.tensor([250.0, 20.0, -3.0, 99.0, float("inf"), 140.0], dtype=torch.float64)
    clip = _Clip.__new__(_Clip)
    clip.config = QKClip(alpha=alpha)
    found = clip._scales(maxima, 6, 3)  # pyright: ignore[reportPrivateUsage]
    queries, keys = oracles.qk_clip_factors(maxima.numpy(), 100.0, alpha, 3)
    assert np.allclose(found.numpy(), np.concatenate((queries, keys)), rtol=1e-12)
