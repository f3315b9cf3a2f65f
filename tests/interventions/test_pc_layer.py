"""PC Layer against singular values in float64, and what it promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.accumulation import accumulating
from trimtab.intervention import TrainedModelError
from trimtab.interventions import PCLayer
from trimtab.interventions.pc_layer import LEVELS
from trimtab.loss import next_token_loss
from trimtab.method import install, installed_in
from trimtab.testing.families import FAMILIES

SHAPES = [(6, 6), (9, 4), (4, 9), (5, 1)]


def oracle(weight: Tensor, level: int, gamma: float = 1.0) -> Tensor:
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    norm = values[0] + 1e-7
    scaled = values / norm
    lifted = sum((c * scaled ** (2 * power + 1) for power, c in enumerate(LEVELS[level])), torch.zeros(()))
    return gamma * norm * (left * lifted) @ right


@pytest.mark.parametrize("level", sorted(LEVELS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_effective_weight_has_the_lifted_singular_values(level: int, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rule = PCLayer(level=level).rule(weight)  # pyright: ignore[reportArgumentType]
    effective = rule(weight).detach()
    assert torch.allclose(effective.double(), oracle(weight, level), atol=2e-5)
    assert float(torch.linalg.svdvals(effective)[0]) <= 1.0212 * float(torch.linalg.svdvals(weight)[0])


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_coefficients_of_a_level_add_up_to_one(level: int) -> None:
    assert sum(LEVELS[level]) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("level", sorted(LEVELS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_the_definition(level: int, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator)
    outer = torch.randn(shape, generator=generator)
    rule = PCLayer(level=level).rule(weight)  # pyright: ignore[reportArgumentType]
    parameter = weight.clone().requires_grad_()
    (rule(parameter) * outer).sum().backward()
    wide = weight.double().requires_grad_()
    u, v = rule.u.double(), rule.v.double()  # pyright: ignore
    norm = torch.dot(v, wide @ u) + 1e-7
    matrix = wide / norm
    gram = matrix.mT @ matrix
    powers = torch.eye(shape[1], dtype=torch.float64)
    poly = torch.zeros_like(gram)
    for coefficient in LEVELS[level]:
        poly = poly + coefficient * powers
        powers = powers @ gram
    (matrix @ poly * norm.detach() * outer.double()).sum().backward()
    assert parameter.grad is not None
    assert wide.grad is not None
    assert torch.allclose(parameter.grad.double(), wide.grad, atol=3e-4 * float(wide.grad.abs().max()))
    # The spectral norm is divided out, so the gradient has no radial part.
    radial = float((parameter.grad * weight).sum() / parameter.grad.norm() / weight.norm())
    assert abs(radial) < 1e-4


@pytest.mark.parametrize("family", ["trimtab GPT", "Llama", "GPT-2"])
def test_merged_weights_are_the_same_function_after_training(family: str) -> None:
    model = FAMILIES[family]()
    install([PCLayer()], host_for(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        next_token_loss(model, tokens).backward()
        optimizer.step()
    model.eval()
    before = model(tokens)
    for receipt in installed_in(model):
        receipt.merge()
    after = model(tokens)
    assert torch.equal(getattr(before, "logits", before), getattr(after, "logits", after))
    assert not any("parametrizations" in name for name, _ in model.named_parameters())


def test_the_spectral_norm_follows_the_weight_in_training() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=64, width=32, num_heads=4, num_layers=2, context=32))
    methods.pc_layer.install(host_for(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    for seed in range(20):
        tokens = torch.randint(0, 60, (4, 17), generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        next_token_loss(model, tokens).backward()
        optimizer.step()
    for block in model.blocks:
        stored = block.mlp.fc1.parametrizations.weight.original.detach()  # pyright: ignore
        rule = block.mlp.fc1.parametrizations.weight[0]  # pyright: ignore
        estimate = torch.dot(rule.v, stored @ rule.u)
        exact = torch.linalg.svdvals(stored.double())[0]
        assert float(estimate) == pytest.approx(float(exact), rel=5e-3)


def test_a_trained_model_is_refused() -> None:
    model = GPT(GPTConfig(vocab_size=64, width=32, num_heads=4, num_layers=2, context=32))
    with torch.no_grad():
        model.blocks[0].attn_norm.weight[0] = 1.5  # pyright: ignore
    with pytest.raises(TrainedModelError, match="pc_layer changes the function"):
        methods.pc_layer.install(host_for(model))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_micro_batches_share_the_effective_weight_and_give_the_same_gradients(accumulate: int, recompute: bool) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=64, width=32, num_heads=4, num_layers=2, context=32, recompute=recompute)).double()
    install([PCLayer()], host_for(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    next_token_loss(model, torch.randint(0, 60, (2, 9))).backward()
    optimizer.step()  # from now on the state advances with the steps of the optimizer
    model.zero_grad()
    calls: list[int] = []
    rule = model.blocks[0].mlp.fc1.parametrizations.weight[0]  # pyright: ignore
    whole = rule._effective  # pyright: ignore
    rule._effective = lambda weight: (calls.append(1), whole(weight))[1]  # pyright: ignore
    tokens = torch.randint(0, 60, (accumulate, 2, 9), generator=torch.Generator().manual_seed(0))

    def gradients() -> list[Tensor]:
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return found

    for piece in tokens:
        next_token_loss(model, piece).backward()
    plain, each = gradients(), len(calls)
    calls.clear()
    with accumulating(model):
        for piece in tokens:
            next_token_loss(model, piece).backward()
    shared = gradients()
    assert len(calls) == 1
    assert each >= accumulate
    assert len(plain) == len(shared) == len(list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-9) for a, b in zip(plain, shared, strict=True))
    model.eval()
    next_token_loss(model, tokens[0])
    assert len(calls) >= 2, "an evaluation took the weight of the block"
