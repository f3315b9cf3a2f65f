"""The state of sigma advances once a step, whatever runs the forward pass, and follows the weights that are loaded."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimtab import GPT, GPTConfig, host_for, methods, probes, watch
from trimtab.optim import AdamW, Muon, MuonH
from trimtab.parameters import trained_parameters

CONFIG = GPTConfig(vocab_size=24, width=16, num_layers=2, num_heads=2, context=12)
WAYS = ("compile", "checkpoint", "autocast", "two forwards")
PAIRS = [(way,) for way in WAYS] + list(itertools.combinations(WAYS, 2))
NAMES = [f"blocks.{i}.{part}" for i in range(2) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


def batch(seed: int) -> Tensor:
    return torch.randint(0, 24, (4, 13), generator=torch.Generator().manual_seed(seed))


def loss_of(run: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    return F.cross_entropy(run(tokens[:, :-1]).flatten(0, 1).double(), tokens[:, 1:].flatten())


@pytest.fixture(scope="module")
def trained() -> GPT:
    """A model whose weights have moved: with initial weights u and v are exact, and nothing can go wrong."""
    torch.manual_seed(0)
    model = GPT(CONFIG)
    methods.catalogue()["sigma_reparam"].install(host_for(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for step in range(6):
        loss_of(model, batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def rules(model: nn.Module) -> list[nn.Module]:
    return [model.get_submodule(name).parametrizations.weight[0] for name in NAMES]  # pyright: ignore


def gradients(model: GPT, ways: tuple[str, ...]) -> dict[str, Tensor]:
    """The gradients of two batches together, by these ways to run the model."""
    model = copy.deepcopy(model)
    if "checkpoint" in ways:
        for block in model.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    run: Callable[[Tensor], Tensor] = model
    if "compile" in ways:
        run = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
    with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in ways):
        if "two forwards" in ways:
            (loss_of(run, batch(10)) + loss_of(run, batch(11))).backward()
        else:
            loss_of(run, batch(10)).backward()
            loss_of(run, batch(11)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("ways", PAIRS, ids=" and ".join)
def test_gradients_are_those_of_the_function_in_float64(trained: GPT, ways: tuple[str, ...]) -> None:
    torch.compiler.reset()
    found = gradients(trained, ways)
    if "autocast" in ways:  # the activations are in bf16, so the ways are compared with plain autocast
        expected = gradients(trained, ("autocast",))
    else:
        oracle = copy.deepcopy(trained).double()
        expected = gradients(oracle, ())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (found[name].double() - gradient.double()).norm() / gradient.double().norm()
        assert error < (5e-3 if "autocast" in ways else 1e-5), f"{name}: {error:.1e}"


def test_sigma_is_that_of_float64_under_autocast(trained: GPT) -> None:
    model = copy.deepcopy(trained)
    with torch.autocast("cpu", torch.bfloat16):
        weights = {name: model.get_submodule(name).weight for name in NAMES}
    for name, effective in weights.items():
        holder = model.get_submodule(name).parametrizations.weight  # pyright: ignore
        stored, rule = holder.original.double(), holder[0]
        sigma = rule.v.double() @ stored @ rule.u.double()
        exact = rule.gamma.double() / sigma * stored
        assert ((effective.double() - exact).norm() / exact.norm()).item() < 1e-6


def test_the_state_advances_once_a_step_for_any_number_of_forward_passes(trained: GPT) -> None:
    model = copy.deepcopy(trained)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[Tensor] = []
    for step in range(2):
        for micro in range(3):
            loss_of(model, batch(10 * step + micro)).backward()
            seen.append(rules(model)[0].u.clone())
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], seen[3])
    assert torch.equal(seen[3], seen[5])


class Wrapper(torch.optim.Optimizer):
    """An optimizer of a user that steps another one, as SAM and Lookahead do."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self) -> None:  # type: ignore[override]
        self.inner.step()


def wrapped(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return Wrapper(AdamW().build(parameters, rate))


@pytest.mark.parametrize("build", [Muon().build, MuonH().build, wrapped], ids=["muon", "muon_h", "wrapper"])
def test_an_optimizer_of_several_parts_advances_the_state_once_a_step(trained: GPT, build: Any) -> None:
    """Torch calls the hooks of a step for the whole and for each part of it."""
    model = copy.deepcopy(trained)
    whole = build(trained_parameters(model), 0.01)
    loss_of(model, batch(0)).backward()
    before = {name: rule.u.clone() for name, rule in zip(NAMES, rules(model), strict=True)}
    whole.step()
    for name, rule in zip(NAMES, rules(model), strict=True):
        weight = model.get_submodule(name).parametrizations.weight.original  # pyright: ignore
        v = F.normalize(weight @ before[name], dim=0)
        torch.testing.assert_close(rule.u, F.normalize(weight.T @ v, dim=0))
        twice = F.normalize(weight.T @ F.normalize(weight @ rule.u, dim=0), dim=0)
        assert not torch.allclose(rule.u, twice)


def test_evaluation_computes_the_function_of_training_and_advances_nothing(trained: GPT) -> None:
    model = copy.deepcopy(trained)
    before = rules(model)[0].u.clone()
    with torch.no_grad():
        assert loss_of(model.eval(), batch(3)) == loss_of(model.train(), batch(3))
    assert torch.equal(rules(model)[0].u, before)


def test_an_optimizer_of_another_model_moves_nothing(trained: GPT) -> None:
    model, other = copy.deepcopy(trained), copy.deepcopy(trained)
    loss_of(model, batch(0))
    before = rules(model)[0].u.clone()
    torch.optim.SGD(other.parameters(), lr=0.0).step()
    loss_of(model, batch(0))
    assert torch.equal(rules(model)[0].u, before)


def test_without_an_optimizer_of_torch_the_state_advances_after_a_backward_pass() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    methods.catalogue()["sigma_reparam"].install(host_for(model))
    seen: list[Tensor] = []
    for step in range(3):
        loss_of(model, batch(step)).backward()
        seen.append(rules(model)[0].u.clone())
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None
                p -= 0.05 * p.grad
                p.grad = None
    assert not torch.equal(seen[1], seen[0])
    assert not torch.equal(seen[2], seen[1])
    for name in NAMES:  # the spectral norm is followed
        sigma = torch.linalg.matrix_norm(model.get_submodule(name).weight.detach(), 2).item()
        gamma = model.get_submodule(name).parametrizations.weight[0].gamma.item()  # pyright: ignore
        assert sigma == pytest.approx(gamma, rel=0.05)


RANK = """
import os, sys, torch, torch.distributed as dist, torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from trimtab import GPT, GPTConfig, host_for, methods

dist.init_process_group("gloo", init_method="file://" + sys.argv[2] + "/meet", rank=int(sys.argv[1]), world_size=2)
tokens = torch.randint(0, 24, (4, 13), generator=torch.Generator().manual_seed(3))

def losses_of(slug, sharded):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=24, width=16, num_layers=2, num_heads=2, context=12))
    methods.catalogue()[slug].install(host_for(model))
    if sharded:
        mesh = init_device_mesh("cpu", (2,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses

for slug in ("sigma_reparam", "wesar"):
    whole, sharded = losses_of(slug, False), losses_of(slug, True)
    assert max(abs(a - b) for a, b in zip(whole, sharded)) < 1e-6, (slug, whole, sharded)
dist.destroy_process_group()
os._exit(0)
"""


def test_two_ranks_under_fully_shard_are_one_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    for rank in ranks:
        _, said = rank.communicate(timeout=120)
        assert rank.returncode == 0, said


def test_a_probe_reads_the_weight_that_the_next_forward_pass_uses(trained: GPT) -> None:
    model = copy.deepcopy(trained)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    with watch(host_for(model), probes.cheap, optimizer=optimizer) as watching:
        for step in range(3):
            loss_of(model, batch(step)).backward()
            optimizer.step()
            for layer in range(2):
                effective = model.get_submodule(f"blocks.{layer}.attn.qkv").weight.detach().norm().item()
                assert watching.last[f"qkv_weight/layer.{layer}/l2_norm"] == pytest.approx(effective, rel=1e-6)
    assert watching.step == 3


# Loading


def plain(model: GPT) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if not key.startswith("trimtab.")}


@pytest.mark.parametrize("slug", ["sigma_reparam", "sigma_reparam_unit", "wesar"])
def test_weights_that_were_saved_without_the_method_keep_their_function(trained: GPT, slug: str) -> None:
    torch.manual_seed(1)
    source, target = GPT(CONFIG), GPT(CONFIG)
    source.load_state_dict(plain(trained))
    methods.catalogue()[slug].install(host_for(target))
    with pytest.raises(RuntimeError, match="Missing key"):
        copy.deepcopy(target).load_state_dict(source.state_dict())
    target.load_state_dict(source.state_dict(), strict=False)
    with torch.no_grad():
        expected, found = loss_of(source.eval(), batch(5)), loss_of(target.eval(), batch(5))
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_copy_that_loads_leaves_the_original_alone(trained: GPT) -> None:
    torch.manual_seed(1)
    original = GPT(CONFIG)
    methods.catalogue()["wesar"].install(host_for(original))
    before = {key: value.clone() for key, value in original.state_dict().items()}
    copy.deepcopy(original).load_state_dict(plain(trained), strict=False)
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())


def test_whole_weights_are_refused_by_factors(trained: GPT) -> None:
    target = GPT(CONFIG)
    methods.catalogue()["mlra"].install(host_for(target))
    with pytest.raises(RuntimeError, match="was saved without mlra"):
        target.load_state_dict(plain(trained), strict=False)


def test_weights_with_the_method_load_with_their_state_and_those_of_0_1_0_too(trained: GPT) -> None:
    states = {"now": trained.state_dict()}
    states["0.1.0"] = {
        key: value.reshape(()) if key.endswith(".gamma") else value
        for key, value in trained.state_dict().items()
        if not key.endswith(".v")
    }
    with torch.no_grad():
        expected = loss_of(trained.eval(), batch(6)).item()
    trained.train()
    for version, state in states.items():
        torch.manual_seed(2)
        target = GPT(CONFIG)
        methods.catalogue()["sigma_reparam"].install(host_for(target))
        target.load_state_dict(state)
        with torch.no_grad():
            found = loss_of(target.eval(), batch(6)).item()
        assert found == pytest.approx(expected, abs=0 if version == "now" else 2e-2), version
