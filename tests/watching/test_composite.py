"""An optimizer made of several: the groups of its Adam part are read from its moments, the others are copied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.watching.optimizer_step import OptimizerStep

CONFIG = GPTConfig(vocab_size=16, width=16, num_layers=1, num_heads=2, context=8)


class Signed(torch.optim.Optimizer):
    """Steps by the sign of the gradient: any optimizer that is not Adam."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @override
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad.sign())


class Composite(torch.optim.Optimizer):
    """Several optimizers as one: it shares the groups of its parts, and their state."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([{"params": group["params"]} for part in parts for group in part.param_groups], {})
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]
        for part in parts:
            part.state = self.state

    @override
    def step(self, closure: Any = None) -> None:
        for part in self.parts:
            part.step()


def make() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG)


def split(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks")}
    return matrices, {name: p for name, p in model.named_parameters() if name not in matrices}


def composite(model: nn.Module) -> Composite:
    matrices, others = split(model)
    return Composite(Signed(matrices.values(), lr=1e-3), torch.optim.AdamW(others.values(), lr=1e-2, weight_decay=0.1))


def backward(model: nn.Module, seed: int) -> None:
    tokens = torch.randint(0, 16, (2, 9), generator=torch.Generator().manual_seed(seed))
    F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()


def update_ratio(before: Tensor, after: Tensor) -> float:
    return ((after.double() - before.double()).norm() / after.double().norm()).item()


def test_only_the_groups_of_the_part_that_is_not_adam_are_copied() -> None:
    model = make()
    optimizer = composite(model)
    matrices, _ = split(model)
    backward(model, 0)
    step = OptimizerStep(optimizer, [])
    step.before()
    assert set(step._copies) == {id(p) for p in matrices.values()}


@pytest.mark.parametrize("nested", [False, True])
def test_the_updates_of_both_parts_are_those_that_were_made(nested: bool) -> None:
    model = make()
    optimizer = composite(model)
    optimizer = Composite(optimizer) if nested else optimizer
    watching = watch(host_for(model), probes.standard, optimizer=optimizer, every=1)
    for seed in range(3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        backward(model, seed)
        optimizer.step()
        optimizer.zero_grad()
        after = dict(model.named_parameters())
        row = watching.last
        for key, name in {
            "fc1_weight/layer.0": "blocks.0.mlp.fc1.weight",
            "embedding_weight/model": "token_embedding.weight",
        }.items():
            assert row[f"{key}/update_ratio"] == pytest.approx(update_ratio(before[name], after[name]), rel=1e-3)
        total = sum((after[name].detach().double() - before[name].double()).square().sum() for name in after)
        assert row["all_update/model/l2_norm"] == pytest.approx(float(total) ** 0.5, rel=1e-3)


def test_second_moments_are_read_of_the_adam_part_alone_and_as_it_reads_them_alone() -> None:
    rows: list[dict[str, float]] = []
    for kind in (composite, lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)):
        model = make()
        optimizer = kind(model)
        watching = watch(host_for(model), probes.standard, optimizer=optimizer, every=1)
        backward(model, 0)
        optimizer.step()
        rows.append({key: value for key, value in watching.last.items() if key.endswith(("/update_rms", "/below_eps"))})
    mixed, plain = rows
    matrices = {key for key in plain if key.startswith(("qkv_weight", "proj_weight", "fc1_weight", "fc2_weight"))}
    assert len(matrices) == 8
    assert mixed == {key: value for key, value in plain.items() if key not in matrices}


def test_training_with_a_composite_is_bitwise_the_same_when_watched() -> None:
    states: list[dict[str, Tensor]] = []
    for watched in (False, True):
        model = make()
        optimizer = composite(model)
        if watched:
            watch(host_for(model), probes.full, optimizer=optimizer, every=2)
        for seed in range(4):
            backward(model, seed)
            optimizer.step()
            optimizer.zero_grad()
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
