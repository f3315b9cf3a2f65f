"""Muon with AdamW, and other pairs, in one watch."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.watching import WatchError

CONFIG = GPTConfig(vocab_size=32, context=8, num_layers=2, num_heads=2, width=16, init_std=0.2)


def make() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG).double()


def pair(model: GPT) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=1e-2)


def backward(model: GPT, seed: int) -> None:
    ids = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(seed))
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()


def copied(model: GPT) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_reading_has_the_updates_of_both_in_whichever_order_they_step(order: tuple[int, int]) -> None:
    model = make()
    both = pair(model)
    watching = watch(host_for(model), probes.standard, optimizer=both, every=2)
    read: list[int] = []
    for seed in range(4):
        backward(model, seed)
        before = copied(model)
        for index in order:
            both[index].step()
        moved = {name: float((p.detach() - before[name]).norm()) for name, p in model.named_parameters()}
        if watching.last and watching.last["step"] == seed + 1:
            read.append(seed + 1)
            row = watching.last
            assert row["fc2_weight_update/layer.1/l2_norm"] == pytest.approx(moved["blocks.1.mlp.fc2.weight"], rel=1e-9)
            assert row["embedding_weight_update/model/l2_norm"] == pytest.approx(
                moved["token_embedding.weight"], rel=1e-9
            )
            whole = sum(value**2 for value in moved.values()) ** 0.5
            assert row["all_update/model/l2_norm"] == pytest.approx(whole, rel=1e-9)
            assert "embedding_weight/model/update_rms" in row  # of AdamW; Muon has no second moment
            assert "fc2_weight/layer.1/update_rms" not in row
        for optimizer in both:
            optimizer.zero_grad()
    assert watching.step == 4
    assert read == [1, 2, 4]


def test_an_optimizer_that_steps_every_second_time_is_named_and_the_others_are_read() -> None:
    model = make()
    often, seldom = pair(model)
    watching = watch(host_for(model), probes.cheap, optimizer=(often, seldom), every=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(6):
            backward(model, seed)
            often.step()
            if seed % 2:
                seldom.step()
            assert watching.step >= seed
            often.zero_grad()
            seldom.zero_grad()
    assert [str(each.message) for each in caught] == [
        "trimtab: AdamW does not step at every step; its updates may not be read"
    ]
    assert watching.step == watching.last["step"] == 6


def test_training_with_both_is_bitwise_that_without_a_watch() -> None:
    states: list[Tensor] = []
    for watched in (False, True):
        model = make()
        both = pair(model)
        if watched:
            watch(host_for(model), probes.full, optimizer=both, every=1)
        for seed in range(3):
            backward(model, seed)
            for optimizer in both:
                optimizer.step()
                optimizer.zero_grad()
        states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*states)


def test_optimizers_that_hold_nothing_of_the_model_are_refused_together() -> None:
    with pytest.raises(WatchError, match="none of the model's parameters"):
        watch(host_for(make()), probes.cheap, optimizer=pair(make()))
