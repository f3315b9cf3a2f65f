"""Muon by parts, MuonH, StableAdamW, optimizers of torch by name, and decay by part."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab import GPT, GPTConfig, optim, optimizer_for
from trimtab.config import ConfigError, dump_toml
from trimtab.host import Part
from trimtab.loss import next_token_loss
from trimtab.optim import Decay, OptimizerError, StableAdamW, TorchOptimizer, TrainedParameter
from trimtab.optim.matrices import OrthogonalMomentum
from trimtab.parameters import trained_parameters
from trimtab.run.reading import read_run
from trimtab.testing.families import FAMILIES, hugging_face

CONFIG = GPTConfig(vocab_size=32, context=8, num_layers=2, num_heads=2, width=16, tied=False)


def make_model() -> GPT:
    torch.manual_seed(3)
    return GPT(CONFIG)


def batch(seed: int) -> Tensor:
    return torch.randint(0, 32, (4, 9), generator=torch.Generator().manual_seed(seed))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    next_token_loss(model, batch(seed)).backward()
    optimizer.step()


# Muon


def test_muon_of_separate_matrices_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((8, 8), (12, 4), (4, 12))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine = OrthogonalMomentum([{"params": ours, "weight_decay": 0.1}], 0.02)
    torchs = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for p, other in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            other.grad = p.grad.clone()
        mine.step()
        torchs.step()
        for p, other in zip(ours, theirs, strict=True):
            assert torch.allclose(p, other, rtol=0, atol=2e-4), "more than the rounding of bf16"


@pytest.mark.parametrize("family", ["trimtab GPT", "GPT-2", "GPT-NeoX"])
def test_the_parts_of_a_fused_matrix_are_those_of_separate_matrices(family: str) -> None:
    """Slices, transposed slices and interleaved rows give what Muon gives for the parts by themselves."""
    model = FAMILIES[family]()
    one = next(p for p in trained_parameters(model) if len(p.rows) == 3)
    weight = one.parameter
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(weight.shape, generator=generator)
    dimension = int(one.transposed)
    parts = [
        nn.Parameter(weight.detach().index_select(dimension, _index(rows, weight.shape[dimension])))
        for rows in one.rows
    ]
    optimizer = optimizer_for(model, optim.Muon(), 0.02)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    weight.grad = gradient.clone()
    optimizer.step()
    apart = OrthogonalMomentum([{"params": parts, "weight_decay": 0.1}], 0.02)
    for part, rows in zip(parts, one.rows, strict=True):
        part.grad = gradient.index_select(dimension, _index(rows, weight.shape[dimension]))
    apart.step()
    for part, rows in zip(parts, one.rows, strict=True):
        found = weight.detach().index_select(dimension, _index(rows, weight.shape[dimension]))
        assert torch.allclose(found, part.detach(), atol=2e-4), "more than the rounding of bf16"


def _index(rows: slice | Tensor, size: int) -> Tensor:
    return torch.arange(size)[rows]


def test_each_expert_of_a_stack_is_a_matrix_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 8, 6, generator=generator))
    single = [nn.Parameter(expert.clone()) for expert in stack.detach()]
    gradient = torch.randn(stack.shape, generator=generator)
    stacked, apart = OrthogonalMomentum([{"params": [stack]}], 0.02), OrthogonalMomentum([{"params": single}], 0.02)
    stack.grad = gradient
    for expert, part in zip(single, gradient, strict=True):
        expert.grad = part.clone()
    stacked.step()
    apart.step()
    for found, expected in zip(stack.detach(), single, strict=True):
        assert torch.allclose(found, expected, atol=2e-4)


def test_a_vector_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"takes matrices and stacks of matrices, got a parameter of \(3,\)"):
        OrthogonalMomentum([{"params": [nn.Parameter(torch.zeros(3))]}], 0.1)


@pytest.mark.parametrize("config", [optim.Muon(), optim.MuonH(), StableAdamW()], ids=lambda config: config.slug())
def test_a_state_in_a_file_goes_on_with_the_same_bits(config: Any, tmp_path: Any) -> None:
    model, again = make_model(), make_model()
    optimizer, restored = optimizer_for(model, config, 1e-2), optimizer_for(again, config, 1e-2)
    for seed in range(3):
        step(model, optimizer, seed)
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(weights)
    restored.load_state_dict(state)
    for seed in (3, 4):
        step(model, optimizer, seed)
        step(again, restored, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


# MuonH


def test_muon_h_keeps_the_norm_of_every_part_and_turns_it_by_the_rate() -> None:
    model = make_model()
    hidden = [one for one in trained_parameters(model) if one.hidden]
    before = {one.name: one.parameter.detach().clone() for one in hidden}
    optimizer = optimizer_for(model, optim.MuonH(), 0.05)
    step(model, optimizer, 0)
    for one in hidden:
        parts = one.rows or (slice(None),)
        for rows in parts:
            old, new = before[one.name][rows], one.parameter.detach()[rows]
            assert float(new.norm()) == pytest.approx(float(old.norm()), rel=1e-5), one.name
            cosine = float((old * new).sum() / old.norm() / new.norm())
            assert 0.01 < math.acos(min(1.0, cosine)) < 0.08, one.name


def test_muon_h_refuses_a_matrix_of_zeros_and_names_it() -> None:
    model = make_model()
    nn.init.zeros_(model.blocks[1].mlp.fc2.weight)  # pyright: ignore
    with pytest.raises(OptimizerError, match=r"muon_h: blocks\.1\.mlp\.fc2\.weight is zero"):
        optimizer_for(model, optim.MuonH(), 0.05)


def test_muon_h_refuses_a_stack_with_one_matrix_of_zeros() -> None:
    stack = nn.Parameter(torch.stack((torch.ones(3, 2), torch.zeros(3, 2))))
    one = TrainedParameter(name="experts", parameter=stack, parts=(), decays=True, hidden=True)
    with pytest.raises(OptimizerError, match="muon_h: experts is zero"):
        optim.MuonH().build([one], 0.05)


# StableAdamW


def test_stable_adamw_differs_from_that_of_pytorch_optimizer_in_the_decay_only() -> None:
    """Version 4.1.0 decays with the LR after clipping; the authors' code decays with the LR before it."""
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    for decay in (0.0, 0.5):
        generator = torch.Generator().manual_seed(0)
        ours = nn.Parameter(torch.randn(5, 4, generator=generator))
        theirs = nn.Parameter(ours.detach().clone())
        settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": decay}
        other = pytorch_optimizer.StableAdamW([theirs], **settings)
        layer = nn.ParameterList([ours])
        config = StableAdamW(weight_decay=decay)
        mine = config.build([TrainedParameter(name="w", parameter=layer[0], parts=(), decays=True, hidden=False)], 0.01)
        far = 0.0
        for number in range(40):
            gradient = (100.0 if number == 30 else 1.0) * torch.randn(ours.shape, generator=generator)
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            mine.step()
            other.step()
            far = max(far, float((ours - theirs).detach().abs().max()))
            if number < 30 and decay == 0:
                assert far < 1e-5
        assert (far < 1e-5) == (decay == 0), f"decay {decay}: they are {far:.1e} apart"


# Optimizers of torch by name


@pytest.mark.parametrize(
    "name", ["SGD", "NAdam", "RMSprop", "Adafactor", "Adagrad", "RAdam", "ASGD", "Adamax", "Rprop"]
)
def test_an_optimizer_of_torch_steps_under_its_name(name: str) -> None:
    model = make_model()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = optimizer_for(model, TorchOptimizer(name=name), 1e-2)
    assert type(optimizer) is getattr(torch.optim, name)
    step(model, optimizer, 0)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_settings_of_torch_come_from_a_file_and_go_into_the_spec() -> None:
    table = {"optimizer": {"torch": {"name": "SGD", "settings": {"momentum": 0.9, "nesterov": True}}}}
    spec = read_run({"learning_rate": 0.1, **table}, "here")
    group = optimizer_for(make_model(), spec.protocol.optimizer, 0.1).param_groups[0]
    assert (group["momentum"], group["nesterov"], group["lr"]) == (0.9, True, 0.1)
    again = read_run(spec.table(), "again")
    assert again == spec
    assert hash(again.protocol.optimizer) == hash(spec.protocol.optimizer)
    assert "momentum = 0.9" in dump_toml(spec.table())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "Muon"}, "takes matrices only"),
        ({"name": "LBFGS"}, "needs a closure"),
        ({"name": "AdamWW"}, "no optimizer 'AdamWW'"),
        ({"name": "SGD", "settings": {"momentun": 0.9}}, "no setting 'momentun'"),
        ({"name": "Rprop", "weight_decay": 0.1}, "has no weight decay"),
        ({"name": "SGD", "settings": 3}, "expected a table"),
    ],
    ids=str,
)
def test_an_optimizer_that_torch_lacks_is_refused_with_its_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_run({"learning_rate": 0.1, "optimizer": {"torch": settings}}, "here")


# Decay by part


def decays(model: nn.Module, config: Any) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = optimizer_for(model, config, 0.1).param_groups
    return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("slug", ["adamw", "stable_adamw", "torch"])
def test_decay_by_part_spares_the_embedding(slug: str) -> None:
    table = {slug: {"weight_decay": 0.2, "decay": {"embedding": 0, "fc1": 0.5}}}
    if slug == "torch":
        table[slug]["name"] = "AdamW"  # pyright: ignore[reportArgumentType]
    spec = read_run({"learning_rate": 0.1, "optimizer": table}, "here")
    found = decays(make_model(), spec.protocol.optimizer)
    assert found["token_embedding.weight"] == 0.0
    assert found["blocks.0.mlp.fc1.weight"] == pytest.approx(0.1)
    assert found["head.weight"] == pytest.approx(0.2)
    assert found["blocks.0.mlp.fc1.bias"] == 0.0


def test_decay_by_part_of_muon_is_that_of_each_of_its_two_optimizers() -> None:
    table = {"muon": {"decay": {"fc2": 0}, "adamw": {"decay": {"embedding": 0}}}}
    spec = read_run({"learning_rate": 0.1, "optimizer": table}, "here")
    found = decays(make_model(), spec.protocol.optimizer)
    assert {name for name, value in found.items() if value == 0 and value is not None and "weight" in name} >= {
        "token_embedding.weight",
        "blocks.0.mlp.fc2.weight",
    }
    assert found["blocks.0.mlp.fc1.weight"] == pytest.approx(0.1)
    with pytest.raises(OptimizerError, match=r"optimizer\.decay\.embedding: the model has no parameters of this part"):
        optimizer_for(make_model(), optim.Muon(decay=Decay(embedding=0.0)), 0.1)


def test_the_word_independent_is_a_table_of_its_coupling() -> None:
    for decay in ("independent", {"coupling": "independent"}):
        spec = read_run({"learning_rate": 0.1, "optimizer": {"adamw": {"decay": decay}}}, "here")
        assert spec.protocol.optimizer == optim.AdamW(decay=Decay(coupling="independent"))


def test_parts_that_share_a_matrix_need_one_factor_of_decay() -> None:
    with pytest.raises(OptimizerError, match=r"optimizer\.decay: q and k and v share one matrix"):
        optimizer_for(make_model(), optim.AdamW(decay=Decay(q=0.0)), 0.1)
    llama = hugging_face("llama")
    found = decays(llama, optim.AdamW(decay=Decay(q=0.0)))
    assert {value for name, value in found.items() if "q_proj" in name} == {0.0}


def test_norms_do_not_decay_and_a_factor_for_them_is_refused() -> None:
    with pytest.raises(OptimizerError, match=r"optimizer\.decay\.attn_norm"):
        optimizer_for(make_model(), optim.AdamW(decay=Decay(attn_norm=0.5)), 0.1)
    assert {Part.ATTN_NORM} & {part for one in trained_parameters(make_model()) for part in one.parts}
