"""The optimizers: which parameters they train at which rate and decay, how they are asked for, and two as one."""

from __future__ import annotations

import copy
import io
import math
import pickle
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.config import ConfigError, dump_toml
from trimtab.host import Part
from trimtab.intervention import Intervention, ModelIntervention
from trimtab.interventions import AttentionGate, LayerScale, SigmaReparam
from trimtab.interventions.mlra import MLRA
from trimtab.loop import train
from trimtab.loss import next_token_loss
from trimtab.method import install
from trimtab.optim import (
    AdamW,
    CompositeOptimizer,
    Decay,
    Muon,
    MuonH,
    OptimizerConfig,
    OptimizerError,
    Rates,
    StableAdamW,
    TorchOptimizer,
    TrainedParameter,
    catalogue,
)
from trimtab.optim.matrices import OrthogonalMomentum
from trimtab.parameters import trained_parameters
from trimtab.run.build import build_optimizer
from trimtab.run.check import check_run
from trimtab.run.execute import execute
from trimtab.run.reading import read_run
from trimtab.run.spec import RunSpec, UserCode
from trimtab.study.kind import read_any_study
from trimtab.testing.families import FAMILIES, hugging_face

CONFIG = GPTConfig(vocab_size=32, context=8, num_layers=2, num_heads=2, width=16, tied=False)
HIDDEN = {
    f"blocks.{layer}.{name}.weight" for layer in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
}
Tables = Callable[..., dict[str, Any]]


def make_model(**changes: Any) -> GPT:
    torch.manual_seed(3)
    return GPT(replace(CONFIG, **changes))


def equipped(*interventions: ModelIntervention, **changes: Any) -> GPT:
    model = make_model(**changes)
    install(interventions, host_for(model))
    return model


def build(
    config: OptimizerConfig, model: nn.Module, learning_rate: float = 1e-3, interventions: Sequence[Intervention] = ()
) -> torch.optim.Optimizer:
    return config.build(trained_parameters(model, interventions), learning_rate)


def by_name(optimizer: torch.optim.Optimizer, model: nn.Module, setting: str) -> dict[str, Any]:
    """A setting of the group of every parameter; none is in two groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(p)], group[setting]) for group in optimizer.param_groups for p in group["params"]]
    assert len({name for name, _ in found}) == len(found)
    return dict(found)


def trained(model: nn.Module, interventions: Sequence[Intervention] = ()) -> dict[str, TrainedParameter]:
    return {one.name: one for one in trained_parameters(model, interventions)}


def batch(seed: int) -> Tensor:
    return torch.randint(0, 32, (4, 9), generator=torch.Generator().manual_seed(seed))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    next_token_loss(model, batch(seed)).backward()
    optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# What is known of a parameter


@pytest.mark.parametrize("tied", [True, False])
def test_every_trained_parameter_is_named_once_with_the_parts_it_plays(tied: bool) -> None:
    model = make_model(tied=tied)
    found = trained(model)
    assert [(one.name, one.parameter) for one in found.values()] == list(model.named_parameters())
    expected = {
        "token_embedding.weight": (Part.EMBEDDING, Part.HEAD) if tied else (Part.EMBEDDING,),
        "position_embedding.weight": (),
        "blocks.1.attn_norm.weight": (Part.ATTN_NORM,),
        "blocks.1.attn.qkv.weight": (Part.Q, Part.K, Part.V),
        "blocks.1.attn.qkv.bias": (Part.Q, Part.K, Part.V),
        "blocks.1.attn.proj.weight": (Part.PROJ,),
        "blocks.1.mlp_norm.bias": (Part.MLP_NORM,),
        "blocks.1.mlp.fc1.weight": (Part.FC1,),
        "blocks.1.mlp.fc2.bias": (Part.FC2,),
        "final_norm.weight": (Part.FINAL_NORM,),
    }
    assert {name: found[name].parts for name in expected} == expected
    assert ("head.weight" in found) is not tied


def test_hidden_matrices_are_those_of_the_blocks_and_no_others() -> None:
    assert {name for name, one in trained(make_model()).items() if one.hidden} == HIDDEN
    assert {name for name, one in trained(make_model(tied=True)).items() if one.hidden} == HIDDEN


def test_the_hidden_matrices_of_another_family_are_its_linear_layers() -> None:
    model = hugging_face("llama", vocab_size=32)
    hidden = {name for name, one in trained(model).items() if one.hidden}
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert hidden == {name for name, _ in model.named_parameters() if name.split(".")[-2] in layers}
    assert hidden


def test_a_model_that_no_host_knows_has_parameters_without_parts() -> None:
    found = trained(nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8)))
    assert {name: (one.parts, one.decays, one.hidden) for name, one in found.items()} == {
        "0.weight": ((), True, False),
        "1.weight": ((), True, False),
        "1.bias": ((), False, False),
    }


@pytest.mark.parametrize("method", [MLRA(), MLRA(down="shared"), MLRA(projections=("v",))], ids=str)
def test_the_factors_of_a_projection_are_hidden_matrices(method: MLRA) -> None:
    model = equipped(method)
    found = trained(model, (method,))
    factors = {name for name in found if ".qkv." in name and name.endswith("weight")}
    assert len(factors) > len(HIDDEN) / 4
    assert {name for name, one in found.items() if one.hidden} == factors | {n for n in HIDDEN if "qkv" not in n}
    assert all(found[name].decays for name in factors)


@pytest.mark.parametrize("per", ["element", "head"])
def test_the_projection_of_an_attention_gate_is_a_hidden_matrix(per: Any) -> None:
    gate = AttentionGate(per=per)
    model = equipped(gate)
    found = trained(model, (gate,))
    gates = {name for name in found if "gate" in name}
    assert len(gates) == 2
    assert {name for name, one in found.items() if one.hidden} == HIDDEN | gates
    assert all(found[name].decays for name in gates)


def test_what_a_method_adds_is_hidden_only_where_the_method_says_so() -> None:
    gate = AttentionGate()
    model = equipped(gate)
    assert {name for name, one in trained(model).items() if one.hidden} == HIDDEN


@pytest.mark.parametrize("slug", list(methods.catalogue()))
def test_gains_of_methods_are_never_hidden_and_never_decay(slug: str) -> None:
    method = methods.catalogue()[slug]
    model = make_model(num_layers=1)
    plain = dict(model.named_parameters())
    method.install(host_for(model))
    for name, one in trained(model, method.interventions).items():
        if one.parameter.ndim < 2:
            assert not one.hidden, name
            assert not one.decays, name
        elif any(one.parameter is parameter for parameter in plain.values()):
            assert one.decays, name
    optimizer = build(Muon(), model, interventions=method.interventions)
    assert set(by_name(optimizer, model, "lr")) == set(dict(model.named_parameters()))


# AdamW: groups and decay


def test_matrices_decay_and_nothing_else_does() -> None:
    model = make_model()
    optimizer = build(AdamW(weight_decay=0.3), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(p): 0.3 if p.ndim >= 2 else 0.0 for p in model.parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_exempt_and_frozen_parameters_are_left_alone() -> None:
    model = make_model()
    model.final_norm.requires_grad_(False)
    spared = model.blocks[0].mlp.fc1.weight
    parameters = [replace(one, decays=one.decays and one.parameter is not spared) for one in trained_parameters(model)]
    optimizer = AdamW().build(parameters, 1e-3)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(spared)] == 0.0
    assert decay[id(model.blocks[0].mlp.fc2.weight)] == 0.1
    assert all(id(p) not in decay for p in model.final_norm.parameters())


@pytest.mark.parametrize("method", [LayerScale(), SigmaReparam()], ids=str)
def test_gains_of_a_method_are_trained_and_do_not_decay(method: ModelIntervention) -> None:
    model = make_model()
    before = {name for name, _ in model.named_parameters()}
    install([method], host_for(model))
    added = [name for name, p in model.named_parameters() if name not in before and not name.endswith("original")]
    decay = by_name(build(AdamW(), model), model, "weight_decay")
    assert added
    assert {decay[name] for name in added} == {0.0}


def test_a_model_of_matrices_alone_gets_an_optimizer() -> None:
    optimizer = build(AdamW(), nn.Linear(2, 2, bias=False))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]


@pytest.mark.parametrize("decay", ["coupled", "independent"])
def test_one_step_of_adamw_follows_the_formula(decay: Any) -> None:
    peak, now, wd = 0.5, 0.2, 0.1
    layer = nn.Linear(3, 2)
    config = AdamW(beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=wd, decay=Decay(coupling=decay))
    optimizer = build(config, layer, peak)
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
        optimizer = build(AdamW(decay=Decay(coupling="independent"), weight_decay=0.1), layer, peak)
        layer.weight.grad = torch.zeros(1, 1)
        optimizer.step()
        return float(layer.weight.detach())

    assert shrunk(1e-4) == pytest.approx(0.9)
    assert shrunk(4.0) == pytest.approx(0.9)


@pytest.mark.parametrize("config", [AdamW, Muon])
@pytest.mark.parametrize("peak", [1e-4, 4.0])
def test_independent_decay_depends_neither_on_the_peak_nor_on_the_factor_of_a_part(config: Any, peak: float) -> None:
    rates = Rates(fc1=0.5, embedding=4.0, head=0.0)
    independent = Decay(coupling="independent")
    own = {"adamw_rate": 3.0, "adamw": AdamW(decay=independent, weight_decay=0.1)} if config is Muon else {}
    model = make_model()
    optimizer = build(config(decay=independent, weight_decay=0.1, rates=rates, **own), model, peak)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5  # half of the peak
    optimizer.step()
    for name, parameter in model.named_parameters():
        stays = parameter.ndim < 2 or name == "head.weight"  # what has no LR does not shrink either
        assert torch.allclose(parameter, before[name] * (1.0 if stays else 0.95), atol=1e-7), name


@pytest.mark.parametrize(
    "settings",
    [{"beta1": 1.0}, {"beta2": -0.1}, {"eps": -1.0}, {"weight_decay": math.inf}, {"weight_decay": math.nan}],
    ids=str,
)
def test_an_optimizer_that_cannot_be_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        AdamW(**settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"ns_steps": 0},
        {"ns_steps": 100},
        {"weight_decay": -1.0},
        {"adamw_rate": -1.0},
        {"adamw_rate": math.inf},
        {"adamw": AdamW(rates=Rates(embedding=0.5))},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_muon_that_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Muon(**settings)


# Factors on the rate by part


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_a_factor_that_cannot_be_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="embedding must be finite and not negative"):
        Rates(embedding=value)


def test_there_is_a_factor_for_every_part() -> None:
    assert {part: getattr(Rates(), part.value) for part in Part} == dict.fromkeys(Part, 1.0)
    assert Rates().changed() == []
    for part in Part:
        assert Rates(**{part.value: 2.0}).changed() == [part]


def test_a_group_has_the_peak_rate_times_the_factor_of_its_part() -> None:
    model = make_model()
    factors = {"embedding": 0.5, "fc1": 2.0, "attn_norm": 0.25, "head": 0.5, "final_norm": 0.0}
    optimizer = build(AdamW(rates=Rates(**factors), weight_decay=0.3), model, 0.01)
    rates, decay = (by_name(optimizer, model, setting) for setting in ("lr", "weight_decay"))
    found = trained(model)
    for name, one in found.items():
        factor = factors.get(one.parts[0].value, 1.0) if len(one.parts) == 1 else 1.0
        assert rates[name] == pytest.approx(0.01 * factor), name
        assert decay[name] == (0.3 if one.decays else 0.0), name
    assert set(rates) == set(found)
    # Embedding and head share a group; decaying groups come first.
    assert len(optimizer.param_groups) == 7
    assert sorted(group["weight_decay"] == 0 for group in optimizer.param_groups) == [
        group["weight_decay"] == 0 for group in optimizer.param_groups
    ]


def test_factors_of_one_leave_the_optimizer_as_it_is() -> None:
    model = make_model()
    one, other = build(AdamW(), model), build(AdamW(rates=Rates(embedding=1.0)), model)
    assert AdamW(rates=Rates(embedding=1.0)) == AdamW()
    assert [group["lr"] for group in one.param_groups] == [group["lr"] for group in other.param_groups] == [1e-3] * 2


def test_a_factor_reaches_the_parameters_over_the_schedule() -> None:
    model, plain = make_model(), make_model()
    optimizer = build(AdamW(rates=Rates(embedding=0.0)), model, 0.01)
    seen: list[set[float]] = []
    optimizer.register_step_pre_hook(lambda one, *_: seen.append({group["lr"] for group in one.param_groups}))
    list(train(model, [(batch(0),), (batch(1),)], optimizer, lambda step: (1.0, 0.5)[step]))
    assert torch.equal(model.token_embedding.weight, plain.token_embedding.weight)
    assert not torch.equal(model.head.weight, plain.head.weight)
    assert seen == [{0.0, 0.01}, {0.0, 0.005}]


def test_the_factor_of_a_part_that_the_model_lacks_is_refused() -> None:
    model = equipped(*methods.catalogue()["sigma_reparam_normless"].interventions)
    assert not any("attn_norm" in name for name, _ in model.named_parameters())
    with pytest.raises(OptimizerError, match=r"optimizer\.rates\.attn_norm: .*no parameters.*embedding, fc1"):
        build(AdamW(rates=Rates(attn_norm=0.5)), model)
    with pytest.raises(OptimizerError, match=r"optimizer\.rates\.embedding: .*it has none"):
        build(AdamW(rates=Rates(embedding=0.5)), nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8)))


def test_the_factor_of_a_frozen_part_is_refused() -> None:
    model = make_model()
    model.final_norm.requires_grad_(False)
    with pytest.raises(OptimizerError, match=r"optimizer\.rates\.final_norm"):
        build(AdamW(rates=Rates(final_norm=0.5)), model)


@pytest.mark.parametrize("config", [AdamW, Muon])
def test_parts_that_share_a_matrix_must_have_the_same_factor(config: Any) -> None:
    tied, fused = make_model(tied=True), make_model()
    for model, rates, words in (
        (tied, {"embedding": 0.5}, "embedding and head share one matrix"),
        (tied, {"embedding": 0.5, "head": 0.25}, "embedding and head"),
        (fused, {"q": 0.5}, "q and k and v share one matrix"),
        (fused, {"q": 0.5, "k": 0.5}, "q and k and v"),
    ):
        with pytest.raises(OptimizerError, match=words):
            build(config(rates=Rates(**rates)), model)
    rates = by_name(build(config(rates=Rates(embedding=0.5, head=0.5)), tied, 1.0), tied, "lr")
    assert (rates["token_embedding.weight"], rates["position_embedding.weight"]) == (0.5, 1.0)
    rates = by_name(build(config(rates=Rates(q=0.5, k=0.5, v=0.5)), fused, 1.0), fused, "lr")
    assert (rates["blocks.0.attn.qkv.weight"], rates["blocks.0.attn.qkv.bias"]) == (0.5, 0.5)


def test_queries_of_their_own_have_a_factor_of_their_own() -> None:
    model = hugging_face("llama", vocab_size=32)
    rates = by_name(build(AdamW(rates=Rates(q=0.5)), model, 1.0), model, "lr")
    assert {name: rate for name, rate in rates.items() if "q_proj" in name} == {
        name: 0.5 for name in rates if "q_proj" in name
    }
    assert {rate for name, rate in rates.items() if "q_proj" not in name} == {1.0}


# Muon


def muon_part(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    assert isinstance(optimizer, CompositeOptimizer)
    first, second = optimizer.parts
    assert isinstance(first, OrthogonalMomentum)
    assert isinstance(second, torch.optim.AdamW)
    return first


@pytest.mark.parametrize("tied", [True, False])
def test_muon_trains_the_hidden_matrices_and_adamw_everything_else(tied: bool) -> None:
    model = make_model(tied=tied)
    optimizer = build(Muon(), model)
    assert set(by_name(muon_part(optimizer), model, "lr")) == HIDDEN
    assert set(by_name(optimizer, model, "lr")) == {name for name, _ in model.named_parameters()}


def test_muon_trains_the_matrices_that_methods_declare_hidden() -> None:
    for method in (MLRA(), AttentionGate()):
        model = equipped(method)
        optimizer = build(Muon(), model, interventions=(method,))
        hidden = {name for name, one in trained(model, (method,)).items() if one.hidden}
        assert set(by_name(muon_part(optimizer), model, "lr")) == hidden
        assert any("up." in name or "gate" in name for name in hidden)


def test_muon_refuses_a_model_that_no_host_knows() -> None:
    with pytest.raises(OptimizerError, match=r"optimizer\.muon: .*use adamw"):
        build(Muon(), nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8)))


def test_hidden_matrices_alone_need_no_adamw() -> None:
    model = make_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in HIDDEN)
    assert type(build(Muon(), model)) is OrthogonalMomentum


def test_the_settings_of_muon_reach_both_parts() -> None:
    model = make_model()
    adamw = AdamW(beta1=0.7, beta2=0.8, eps=1e-5, weight_decay=0.4)
    config = Muon(momentum=0.8, nesterov=False, ns_steps=3, weight_decay=0.2, adamw_rate=3.0, adamw=adamw)
    optimizer = build(config, model, 0.01)
    for group in muon_part(optimizer).param_groups:
        assert (group["momentum"], group["nesterov"], group["ns_steps"]) == (0.8, False, 3)
        assert (group["lr"], group["weight_decay"]) == (0.01, 0.2)
    rest = optimizer.parts[1].param_groups  # pyright: ignore[reportAttributeAccessIssue]
    assert [group["weight_decay"] for group in rest] == [0.4, 0.0]
    for group in rest:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.7, 0.8), 1e-5, pytest.approx(0.03))


def test_factors_by_part_apply_to_both_parts_of_muon() -> None:
    model = make_model()
    optimizer = build(Muon(rates=Rates(fc1=0.5, embedding=0.25), adamw_rate=2.0), model, 0.01)
    rates = by_name(optimizer, model, "lr")
    for name, one in trained(model).items():
        factor = 0.5 if one.parts == (Part.FC1,) else 0.25 if one.parts == (Part.EMBEDDING,) else 1.0
        assert rates[name] == pytest.approx(0.01 * factor * (1.0 if one.hidden else 2.0)), name


@pytest.mark.parametrize(
    ("match_rms", "named", "scale"),
    [
        (True, "match_rms", lambda rows, columns: 0.2 * math.sqrt(max(rows, columns))),
        (False, "original", lambda rows, columns: math.sqrt(max(1.0, rows / columns))),
    ],
)
def test_an_update_of_muon_is_orthogonal_with_the_scale_asked_for(
    match_rms: bool, named: str, scale: Callable[[int, int], float]
) -> None:
    model = make_model()
    optimizer = build(Muon(match_rms=match_rms, weight_decay=0.0, ns_steps=8), model, 0.01)
    assert {group["factor"] for group in muon_part(optimizer).param_groups} == {named}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if name in HIDDEN:
            # The parts of a fused matrix are orthogonal one by one.
            moved = (before[name] - parameter.detach()).split(16 if "qkv" in name else len(parameter))
            for update in (part / 0.01 / scale(*part.shape) for part in moved):
                values = torch.linalg.svdvals(update)
                # Those of the gradient range over a factor of 10 and more; eight iterations bring all of them near 1.
                assert float(values.min()) > 0.5, name
                assert float(values.max()) < 1.3, name
                if match_rms:
                    assert float(update.square().mean().sqrt()) * scale(*update.shape) == pytest.approx(0.2, rel=0.2)


def test_one_step_of_decay_of_muon_is_that_of_its_rate() -> None:
    model = make_model()
    optimizer = build(Muon(weight_decay=0.3, adamw=AdamW(weight_decay=0.0)), model, 0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 0.5 * 0.3 if name in HIDDEN else 1.0
        assert torch.allclose(parameter, before[name] * kept, atol=1e-7), name


def test_muon_learns(tiny_tables: Tables, tmp_path: Any) -> None:
    spec = spec_of(tiny_tables, optimizer={"muon": {"match_rms": True}}, learning_rate=0.02)
    outcome = execute(spec, tmp_path)
    assert outcome.stopped is None
    assert outcome.final_loss < outcome.initial_loss - 0.3
    again = execute(spec, tmp_path / "again")
    assert (again.held_out, again.run_id) == (outcome.held_out, outcome.run_id)
    adamw = execute(spec_of(tiny_tables, learning_rate=0.02), tmp_path)
    assert adamw.run_id != outcome.run_id
    assert adamw.held_out != outcome.held_out


# Several optimizers as one


def composite(model: nn.Module) -> CompositeOptimizer:
    optimizer = build(Muon(rates=Rates(fc1=0.5)), model, 0.01)
    assert isinstance(optimizer, CompositeOptimizer)
    return optimizer


def test_a_composite_steps_as_its_parts_do_by_themselves() -> None:
    model, plain = make_model(), make_model()
    joined = composite(model)
    config = Muon(rates=Rates(fc1=0.5)).build(trained_parameters(plain), 0.01)
    parts = config.parts  # pyright: ignore[reportAttributeAccessIssue]
    apart = [
        OrthogonalMomentum([{**group} for group in parts[0].param_groups], 0.01),
        torch.optim.AdamW([{**group} for group in parts[1].param_groups], fused=True),
    ]
    for seed in range(3):
        step(model, joined, seed)
        plain.zero_grad()
        next_token_loss(plain, batch(seed)).backward()
        for one in apart:
            one.step()
    assert same(model, plain)


def test_groups_and_state_of_a_composite_are_those_of_its_parts() -> None:
    model = make_model()
    optimizer = composite(model)
    step(model, optimizer, 0)

    def shared() -> None:
        groups = [group for part in optimizer.parts for group in part.param_groups]
        assert len(groups) == len(optimizer.param_groups) == 6
        assert all(one is other for one, other in zip(groups, optimizer.param_groups, strict=True))
        assert all(part.state is optimizer.state for part in optimizer.parts)
        assert set(optimizer.state) == set(model.parameters())

    shared()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    shared()


def test_the_state_that_parts_had_before_they_were_joined_is_kept() -> None:
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    parts = [torch.optim.SGD([one], lr=0.1, momentum=0.9) for one in (first, second)]
    for one, part in zip((first, second), parts, strict=True):
        one.grad = torch.ones(2)
        part.step()
    optimizer = CompositeOptimizer(*parts)
    optimizer.step()
    for one in (first, second):
        assert torch.allclose(one, torch.full((2,), 1 - 0.1 - 0.1 * 1.9))


@pytest.mark.parametrize("through", ["memory", "file"])
def test_a_restored_composite_goes_on_bit_for_bit(through: str) -> None:
    model = make_model()
    optimizer = composite(model)
    for seed in range(3):
        step(model, optimizer, seed)
    again = make_model()
    again.load_state_dict(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    if through == "file":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    restored = composite(again)
    restored.load_state_dict(state)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(again, restored, seed)
    assert same(model, again)
    fresh = make_model()
    fresh.load_state_dict(model.state_dict())
    other = composite(fresh)
    step(model, optimizer, 6)
    step(fresh, other, 6)
    assert not same(model, fresh), "the state makes no difference"


def test_a_restored_composite_has_the_rates_that_it_was_saved_with() -> None:
    model = make_model()
    optimizer = composite(model)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    restored = composite(make_model())
    restored.load_state_dict(optimizer.state_dict())
    assert [g["lr"] for part in restored.parts for g in part.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_a_change_of_the_rate_reaches_the_parts() -> None:
    model, before = make_model(), make_model()
    optimizer = composite(model)
    for group in optimizer.param_groups[1:]:
        group["lr"] = 0.0
    step(model, optimizer, 0)
    moved = {
        name
        for (name, one), other in zip(model.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(one, other)
    }
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert moved == {names[id(parameter)] for parameter in optimizer.param_groups[0]["params"]}


def test_a_scheduler_of_torch_drives_a_composite() -> None:
    optimizer = composite(make_model())
    base = [group["lr"] for group in optimizer.param_groups]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    optimizer.step()
    scheduler.step()
    assert [g["lr"] for part in optimizer.parts for g in part.param_groups] == [0.5 * rate for rate in base]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_of_a_composite_clears_every_gradient(set_to_none: bool) -> None:
    model = make_model()
    optimizer = composite(model)
    next_token_loss(model, batch(0)).backward()
    optimizer.zero_grad(set_to_none=set_to_none)
    for parameter in model.parameters():
        assert (parameter.grad is None) is set_to_none
        assert parameter.grad is None or not parameter.grad.any()


def test_step_hooks_of_a_composite_fire_once_a_step() -> None:
    model = make_model()
    optimizer = composite(model)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.parts[0].register_step_post_hook(lambda *_: calls.append("part"))
    for seed in range(2):
        step(model, optimizer, seed)
    assert calls == ["before", "part", "after"] * 2


def test_a_closure_is_called_once_and_its_loss_is_returned() -> None:
    model, plain = make_model(), make_model()
    optimizer = composite(model)
    calls: list[float] = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = next_token_loss(model, batch(0))
        loss.backward()
        calls.append(float(loss.detach()))
        return calls[-1]

    assert optimizer.step(closure) == calls[0]
    assert len(calls) == 1
    assert optimizer.step() is None
    other = composite(plain)
    step(plain, other, 0)
    other.step()
    assert same(model, plain)


@pytest.mark.parametrize(
    "through", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"]
)
def test_a_copy_of_a_composite_goes_on_by_itself_bit_for_bit(through: Callable[[Any], Any]) -> None:
    model = make_model()
    optimizer = composite(model)
    step(model, optimizer, 0)
    again, copied = through((model, optimizer))
    assert all(one is other for one, other in zip(copied.param_groups, _groups_of_parts(copied), strict=True))
    assert {id(p) for group in copied.param_groups for p in group["params"]} == {id(p) for p in again.parameters()}
    for seed in (1, 2):
        step(again, copied, seed)
    assert not same(model, again)
    for seed in (1, 2):
        step(model, optimizer, seed)
    assert same(model, again)
    copied.param_groups[0]["lr"] = 0.0
    assert optimizer.param_groups[0]["lr"] != 0.0


def _groups_of_parts(optimizer: Any) -> list[dict[str, Any]]:
    return [group for part in optimizer.parts for group in part.param_groups]


def test_a_group_is_added_to_a_part_and_not_to_the_whole() -> None:
    optimizer = composite(make_model())
    with pytest.raises(TypeError, match="one of the parts"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert len(optimizer.param_groups) == 6


def test_one_parameter_in_two_parts_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="more than one parameter group"):
        CompositeOptimizer(torch.optim.SGD([parameter], lr=0.1), torch.optim.AdamW([parameter], lr=0.1))


# Asking for one


def short(value: object) -> str:
    return type(value).__name__ if isinstance(value, OptimizerConfig) else str(value)


def run_tables(tiny_tables: Tables, **changes: Any) -> dict[str, Any]:
    raw = tiny_tables()
    sections = {key: raw[key] for key in ("model", "training", "schedule", "evaluation", "data")}
    return sections | {"learning_rate": 0.01} | changes


def spec_of(tiny_tables: Tables, **changes: Any) -> RunSpec:
    return read_run(run_tables(tiny_tables, **changes), "run.toml")


def test_the_catalogue_begins_with_adamw() -> None:
    others = [("muon", Muon), ("muon_h", MuonH), ("stable_adamw", StableAdamW), ("torch", TorchOptimizer)]
    assert list(catalogue().items()) == [("adamw", AdamW), *others]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, AdamW()),
        ({"weight_decay": 0.3, "beta1": 0.8}, AdamW(weight_decay=0.3, beta1=0.8)),
        ({"rates": {"embedding": 0.5}}, AdamW(rates=Rates(embedding=0.5))),
        ({"adamw": {}}, AdamW()),
        ({"adamw": {"weight_decay": 0.3}}, AdamW(weight_decay=0.3)),
        ({"adamw": {"rates": {"embedding": 0.5, "head": 2}}}, AdamW(rates=Rates(embedding=0.5, head=2.0))),
        ({"muon": {}}, Muon()),
        (
            {"muon": {"momentum": 0.9, "match_rms": False, "rates": {"fc1": 0.5}, "adamw": {"beta2": 0.99}}},
            Muon(momentum=0.9, match_rms=False, rates=Rates(fc1=0.5), adamw=AdamW(beta2=0.99)),
        ),
    ],
    ids=short,
)
def test_an_optimizer_is_read_by_its_tag_and_is_adamw_without_one(
    tiny_tables: Tables, table: dict[str, Any], expected: OptimizerConfig
) -> None:
    spec = spec_of(tiny_tables, optimizer=table)
    assert spec.protocol.optimizer == expected
    again = read_run(tomllib.loads(dump_toml(spec.table())), "again")
    assert again.protocol.optimizer == expected
    assert list(again.table()["optimizer"]) == [expected.slug()]


def test_a_run_without_an_optimizer_has_adamw(tiny_tables: Tables) -> None:
    assert spec_of(tiny_tables).protocol.optimizer == AdamW()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"moun": {}}, ("optimizer", "unknown 'moun'", "did you mean 'muon'?")),
        ({"adamv": {"beta1": 0.9}}, ("optimizer", "unknown 'adamv'", "did you mean 'adamw'?")),
        ({"xyz": {}}, ("optimizer", "unknown 'xyz'", "adamw, muon")),
        ({"muon": {"momentun": 0.9}}, ("optimizer.muon", "momentun", "it takes 'momentum'")),
        ({"muon": {"adamw": {"betta1": 0.9}}}, ("optimizer.muon.adamw", "betta1", "it takes 'beta1'")),
        ({"muon": {"adamw": {"rates": {"head": 0.5}}}}, ("optimizer.muon", "adamw.rates", "rates of muon")),
        ({"weight_decai": 0.1}, ("optimizer.adamw", "weight_decai", "it takes 'weight_decay'")),
        ({"rates": {"embeding": 0.5}}, ("optimizer.adamw.rates", "embeding", "it takes 'embedding'")),
        ({"rates": {"embedding": -1.0}}, ("optimizer.adamw.rates", "embedding", "not negative")),
        ({"rates": 0.5}, ("optimizer.adamw.rates", "table")),
        ({"muon": {}, "adamw": {}}, ("optimizer", "expected a table of one key")),
        ({"muon": 3}, ("optimizer", "muon")),
        ({"decay": "sometimes"}, ("optimizer.adamw.decay", "coupled", "sometimes")),
        ("muon", ("optimizer", "muon")),
        (3, ("optimizer", "3")),
    ],
    ids=short,
)
def test_an_optimizer_that_cannot_be_read_is_one_line_that_says_what_would_do(
    tiny_tables: Tables, table: Any, words: Sequence[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        spec_of(tiny_tables, optimizer=table)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("run.toml: ")
    for word in words:
        assert word in message, message


SHARED = AdamW(weight_decay=0.3, beta1=0.8)


@pytest.mark.parametrize(
    ("shared", "own", "expected"),
    [
        ({"weight_decay": 0.3, "beta1": 0.8}, None, SHARED),
        ({"weight_decay": 0.3, "beta1": 0.8}, {"beta1": 0.7}, replace(SHARED, beta1=0.7)),
        ({"adamw": {"weight_decay": 0.3, "beta1": 0.8}}, {"beta1": 0.7}, replace(SHARED, beta1=0.7)),
        ({"weight_decay": 0.3, "beta1": 0.8}, {"adamw": {"beta1": 0.7}}, AdamW(beta1=0.7)),
        ({"adamw": {"weight_decay": 0.3}}, {"adamw": {"beta1": 0.7}}, AdamW(beta1=0.7)),
        ({"weight_decay": 0.3, "beta1": 0.8}, {"muon": {"momentum": 0.9}}, Muon(momentum=0.9)),
        ({"muon": {"momentum": 0.9, "weight_decay": 0.3}}, {"muon": {"ns_steps": 3}}, Muon(ns_steps=3)),
        ({"muon": {"momentum": 0.9, "weight_decay": 0.3}}, {"beta1": 0.7}, AdamW(beta1=0.7)),
        ({"muon": {"adamw": {"beta2": 0.99}}}, {"beta1": 0.7}, AdamW(beta1=0.7)),
        ({"muon": {}}, {"adamw": {}}, AdamW()),
        (
            {"weight_decay": 0.3, "rates": {"embedding": 0.5}},
            {"rates": {"head": 0.25}},
            AdamW(weight_decay=0.3, rates=Rates(embedding=0.5, head=0.25)),
        ),
        (None, {"muon": {}}, Muon()),
        (None, {"beta1": 0.7}, AdamW(beta1=0.7)),
    ],
    ids=short,
)
def test_the_optimizer_of_an_arm_replaces_the_shared_one_or_adds_to_adamw(
    tiny_tables: Tables, shared: Any, own: Any, expected: OptimizerConfig
) -> None:
    raw = tiny_tables(arms={"baseline": {}, "own": {"method": "qk_norm"}})
    if shared is not None:
        raw["optimizer"] = shared
    if own is not None:
        raw["arms"]["own"]["optimizer"] = own
    before = copy.deepcopy(raw)
    spec = read_any_study(raw, "study.toml")
    assert raw == before, "the tables of the caller were changed"
    common = read_run(run_tables(tiny_tables, optimizer=shared or {}), "run.toml").protocol.optimizer
    assert spec.arms["own"].protocol.optimizer == expected
    assert spec.arms["baseline"].protocol.optimizer == spec.protocol.optimizer == common
    again = read_any_study(tomllib.loads(dump_toml(spec.table())), "again")
    assert again == spec


def test_the_optimizer_of_a_size_is_laid_over_that_of_every_arm(tiny_tables: Tables) -> None:
    sizes = {"small": {"optimizer": {"beta1": 0.7}}, "large": {"optimizer": {"muon": {}}, "model": {"width": 32}}}
    raw = tiny_tables(kind="max_lr_by_size", sizes=sizes, optimizer={"weight_decay": 0.3})
    raw["arms"]["qk_norm"] = {"optimizer": {"weight_decay": 0.2}}
    spec = read_any_study(raw, "study.toml")
    assert {name: arm.protocol.optimizer for name, arm in spec.arms.items()} == {
        "baseline, small": AdamW(weight_decay=0.3, beta1=0.7),
        "qk_norm, small": AdamW(weight_decay=0.2, beta1=0.7),
        "baseline, large": Muon(),
        "qk_norm, large": Muon(),
    }
    assert read_any_study(tomllib.loads(dump_toml(spec.table())), "again") == spec


def test_an_unknown_optimizer_of_an_arm_is_one_line_with_a_hint(tiny_tables: Tables) -> None:
    raw = tiny_tables(arms={"baseline": {}, "own": {"method": "qk_norm", "optimizer": {"moun": {}}}})
    with pytest.raises(
        ConfigError, match=r"^study\.toml: arms\.own\.optimizer: unknown 'moun'; did you mean 'muon'\?$"
    ):
        read_any_study(raw, "study.toml")


def unknown(config: GPTConfig) -> nn.Module:
    return nn.Sequential(nn.Embedding(config.vocab_size, 8), nn.Linear(8, config.vocab_size))


def plain_sgd(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=learning_rate)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"optimizer": {"rates": {"q": 0.5}}}, UserCode(), "q and k and v share one matrix"),
        ({"optimizer": {"muon": {}}}, UserCode(model=unknown), "use adamw"),
        ({"optimizer": {"rates": {"head": 0.5}}}, UserCode(model=unknown), "no parameters of this part"),
        ({"optimizer": {"rates": {"head": 0.5}}}, UserCode(optimizer=plain_sgd), "built by your own code"),
    ],
)
def test_an_optimizer_that_cannot_train_the_model_is_refused_before_anything_is_written(
    tiny_tables: Tables, changes: dict[str, Any], code: UserCode, words: str
) -> None:
    spec = replace(spec_of(tiny_tables, **changes), code=code)
    with pytest.raises(ConfigError, match=f"^run.toml: optimizer.*{words}") as refused:
        check_run(spec, spec.protocol.data.load(), "run.toml")
    assert "\n" not in str(refused.value)


def test_an_optimizer_of_the_users_own_is_built_at_the_peak_rate(tiny_tables: Tables) -> None:
    spec = replace(spec_of(tiny_tables), code=UserCode(optimizer=plain_sgd))
    optimizer = build_optimizer(make_model(), spec)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01]


def test_matrices_that_are_stored_the_other_way_round_take_match_rms_alone() -> None:
    model = FAMILIES["GPT-2"]()
    parameters = trained_parameters(model)
    assert any(parameter.transposed for parameter in parameters if parameter.hidden)
    assert Muon().build(parameters, 0.1).param_groups
    with pytest.raises(OptimizerError, match=r"stores its matrices as \(in, out\).*match_rms = true"):
        Muon(match_rms=False).build(parameters, 0.1)


def test_two_tags_at_once_are_refused_by_what_is_expected() -> None:
    with pytest.raises(ConfigError, match=r"optimizer: expected a table of one key, one of adamw, muon"):
        read_run({"learning_rate": 0.1, "optimizer": {"muon": {}, "adamw": {}}}, "run.toml")
