"""Unusual optimizers and precisions: closures, half precision, autocast, foreign optimizers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.watching import WatchError
from trimtab.watching.measure import measure

CONFIG = GPTConfig(vocab_size=16, width=16, num_layers=1, num_heads=2, context=8)


def make() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG)


def loss_of(model: nn.Module) -> Tensor:
    tokens = torch.randint(0, 16, (2, 9), generator=torch.Generator().manual_seed(1))
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("early", [False, True], ids=["at the step", "before clipping"])
def test_a_step_with_a_closure_is_read_like_one_without(early: bool) -> None:
    rows = []
    for closed in (False, True):
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        watching = watch(host_for(model), probes.standard, optimizer=optimizer, every=1)

        def passes(model=model, optimizer=optimizer, watching=watching) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            if early:
                watching.see_gradients()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            return loss

        for _ in range(3):
            if closed:
                optimizer.step(passes)
            else:
                passes()
                optimizer.step()
        rows.append(watching.last)
        watching.remove()
    assert rows[0] == rows[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counts_of_large_tensors_in_half_precision_are_whole(dtype: torch.dtype) -> None:
    x = torch.ones(300, 1000, dtype=dtype)
    x[0, :777] = torch.nan
    found = measure(x)
    assert found.tolist() == [300_000 - 777, 777, *[300_000 - 777] * 4, 1]


def test_attention_is_measured_outside_of_autocast() -> None:
    """The scores' queries are in bf16, but what is made of them is not rounded once more."""
    model = make()
    watching = watch(host_for(model), probes.standard, exact=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        queries: list[tuple[Tensor, Tensor]] = []
        model.blocks[0].attn.watchers.append(lambda q, k, mask, scale: queries.append((q, k)))
        loss_of(model)
    row = watching.read()
    (q, k) = queries[0]
    scores = (q.float() @ k.float().mT * q.shape[-1] ** -0.5).masked_fill(
        torch.ones(8, 8, dtype=torch.bool).triu(1), -torch.inf
    )
    assert q.dtype is torch.bfloat16
    assert row["attention/layer.0.head.1/max_logit"] == scores[:, 1].max().item()
    watching.remove()


def test_an_optimizer_of_another_model_is_refused_and_one_of_a_part_is_named() -> None:
    model, other = make(), make()
    with pytest.raises(WatchError, match="none of the model's parameters"):
        watch(host_for(model), probes.cheap, optimizer=torch.optim.SGD(other.parameters(), lr=0.1))
    part = torch.optim.SGD(model.blocks.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"no updates are read of token_embedding\.weight"):
        watching = watch(host_for(model), probes.cheap, optimizer=part)
    watching.remove()


def test_a_cadence_below_one_is_refused_at_any_time() -> None:
    model = make()
    watching = watch(host_for(model), probes.cheap, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="at least 1"):
        watching.every = 0
    watching.remove()


def test_a_sink_that_cannot_open_leaves_nothing_behind() -> None:
    class Full:
        def open(self, run: str) -> None:
            raise OSError("disk full")

        def log(self, step: int, row: dict[str, float]) -> None: ...

        def close(self, status: str) -> None: ...

    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(OSError, match="disk full"):
        watch(host_for(model), probes.standard, optimizer=optimizer, sinks=(Full(),))
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    loss_of(model).backward()
    optimizer.step()


def test_stacked_experts_have_norms_of_weights_gradients_and_updates() -> None:
    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.Parameter(torch.randn(3, 4, 8))
            self.down = torch.nn.Parameter(torch.randn(3, 8, 4))
            self.scale = torch.nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.up).relu() @ self.down * self.scale[:, None, None]

    torch.manual_seed(0)
    model = torch.nn.Sequential(Experts())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watching = watch(model, probes.full, optimizer=optimizer, every=1)
    model(torch.randn(3, 5, 4)).square().mean().backward()
    before = model[0].up.detach().clone()
    assert model[0].up.grad is not None
    gradient = float(model[0].up.grad.norm())
    optimizer.step()
    row = watching.last
    assert row["weight/0.up/l2_norm"] == pytest.approx(float(model[0].up.detach().norm()), rel=1e-6)
    assert row["weight_grad/0.up/l2_norm"] == pytest.approx(gradient, rel=1e-6)
    assert row["weight_update/0.up/l2_norm"] == pytest.approx(float((model[0].up.detach() - before).norm()), rel=1e-5)
    assert "weight/0.scale/l2_norm" not in row
    assert "parameter_grad/0.scale/l2_norm" in row


def test_moments_that_are_first_measured_in_inference_mode_can_be_measured_after_it() -> None:
    from trimtab.watching import measure as module

    module._BUFFERS.of.clear()
    x = torch.randn(100)
    with torch.inference_mode():
        inside = measure(x)
    assert torch.equal(measure(x), inside)


@pytest.mark.parametrize("high", [False, True])
def test_small_entries_beside_outliers_are_not_lost_in_single_precision(high: bool) -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(1 << 20, generator=source)
    x[::4096] = 3000.0
    wide = x.double()
    found = measure(x, high=high)
    assert float(found[3]) == pytest.approx(float(wide.square().sum()), rel=1e-6)
    if high:
        centred = wide - wide.mean()
        fourth = found[5] - 4 * wide.mean() * found[4] + 6 * wide.mean() ** 2 * found[3] - 3 * len(x) * wide.mean() ** 4
        assert float(fourth) == pytest.approx(float(centred.pow(4).sum()), rel=1e-6)
