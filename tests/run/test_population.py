"""Runs trained as one stacked model have the losses of single runs; what cannot be stacked is trained alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from trimtab import GPTConfig, Study, methods
from trimtab.config import ConfigError
from trimtab.host import Part
from trimtab.intervention import GradientRule, RunningRule
from trimtab.interventions import AdaGC, GlobalClip
from trimtab.optim import AdamW, Muon, TrainedParameter
from trimtab.population import NotStackableError, Stack, refusing
from trimtab.population.attention import FoldedAttention
from trimtab.population.muon import StackedMuon
from trimtab.population.optimizer import StackedAdamW
from trimtab.run.carry_out import carry_out, carry_out_together
from trimtab.run.execute import execute
from trimtab.run.folder import load_environment, load_steps
from trimtab.run.identity import basis_of, id_on, settled
from trimtab.run.population import refuse_unstackable
from trimtab.run.reading import read_run
from trimtab.run.spec import RunSpec, UserCode
from trimtab.study.executors.contract import Job
from trimtab.study.executors.population import Population, PopulationExecutor, structure_of
from trimtab.study.kind import read_any_study

CLOSE = 1e-5
FIELDS = ("loss", "held_out_loss", "weight_norm", "penalty")


def run_of(method: Any = "baseline", seed: int = 0, learning_rate: float = 2**-7, **tables: Any) -> RunSpec:
    raw = {
        "method": method,
        "learning_rate": learning_rate,
        "seeds": {"init": seed, "data": seed, "other": seed},
        "model": {"width": 16, "num_heads": 2, "num_layers": 2, "context": 16},
        "training": {"steps": 8, "batch_size": 4, "population": True, **tables.pop("training", {})},
        "schedule": {"warmup_steps": 2},
        "evaluation": {"num_sequences": 8, "evaluations": 4},
        **tables,
    }
    return read_run(raw, "test")


def population(method: Any, count: int, **tables: Any) -> list[RunSpec]:
    """Runs with other LRs, none above 2^-6, and other seeds."""
    return [run_of(method, seed, 2.0 ** (-6 - seed % 4), **tables) for seed in range(count)]


def worst(together: Path, alone: Path, names: list[str], norms: float = 1e-4) -> float:
    """The largest difference in any number of any step, relative to numbers above 1."""
    largest = 0.0
    for name in names:
        ours, expected = load_steps(together / name), load_steps(alone / name)
        assert len(ours) == len(expected)
        for row, other in zip(ours, expected, strict=True):
            assert row.keys() == other.keys()
            assert row["learning_rate"] == other["learning_rate"]
            assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=norms, nan_ok=True)
            for field in FIELDS:
                if field in row and row[field] is not None and not math.isnan(row[field]):
                    largest = max(largest, abs(row[field] - other[field]) / max(1.0, abs(other[field])))
    return largest


def compare(specs: list[RunSpec], tmp_path: Path, norms: float = 1e-4) -> float:
    made = carry_out_together(specs, [""] * len(specs), tmp_path / "together")
    names = [outcome.run_id for outcome in made]
    assert all(load_environment(tmp_path / "together" / name)["population"] == len(specs) for name in names)
    alone = [execute(spec, tmp_path / "alone") for spec in specs]
    assert [outcome.run_id for outcome in alone] == names, "the size of the stack is part of the id"
    for outcome, expected in zip(made, alone, strict=True):
        assert outcome.final_loss == pytest.approx(expected.final_loss, abs=10 * CLOSE)
        assert outcome.held_out[-1][0] == expected.held_out[-1][0]
    return worst(tmp_path / "together", tmp_path / "alone", names, norms)


@pytest.mark.parametrize("method", ["baseline", "sigma_reparam", "mlra", "layer_scale", "soft_cap", "pc_layer"])
@pytest.mark.parametrize("count", [1, 4, pytest.param(16, marks=pytest.mark.nightly)])
def test_a_stack_has_the_losses_of_single_runs(method: str, count: int, tmp_path: Path) -> None:
    assert compare(population(method, count, training={"accumulate": 2}), tmp_path) < CLOSE


@pytest.mark.parametrize(
    ("method", "tables"),
    [
        ([{"ada_gc": {"warmup_steps": 2}}], {"common": []}),
        ([{"z_loss": {"coefficient": 1e-2}}], {}),
        ("baseline", {"optimizer": {"adamw": {"decay": {"coupling": "independent", "fc1": 0.5}}}}),
        ("baseline", {"model": {"width": 16, "num_heads": 2, "num_layers": 1, "context": 16, "positions": "rotary"}}),
        ("baseline", {"common": []}),
        ("sigma_reparam", {"optimizer": {"stable_adamw": {}}}),
        ("baseline", {"optimizer": {"torch": {"name": "SGD", "settings": {"momentum": 0.9}}}}),
    ],
    ids=["ada_gc", "z_loss", "decay", "rotary", "no clipping", "stable_adamw", "sgd"],
)
def test_rules_terms_and_settings_act_on_each_run(method: Any, tables: dict[str, Any], tmp_path: Path) -> None:
    assert compare(population(method, 3, **tables), tmp_path) < CLOSE


MUON = {
    "default": ("baseline", {}),
    "original": ("baseline", {"match_rms": False, "nesterov": False}),
    "rates": ("baseline", {"adamw_rate": 0.3, "rates": {"fc1": 2.0}, "decay": {"coupling": "independent"}}),
    "weight rule": ("sigma_reparam", {"ns_steps": 3}),
}


@pytest.mark.parametrize("case", MUON)
def test_muon_acts_on_each_run_as_closely_as_its_bf16_iteration_allows(case: str, tmp_path: Path) -> None:
    """A difference of 1e-9 in a gradient may round an entry of the iteration to the next number of 8 bits."""
    method, settings = MUON[case]
    specs = population(method, 3, optimizer={"muon": settings})
    assert compare(specs, tmp_path, norms=1e-3) < 10 * CLOSE


@pytest.mark.parametrize("transposed", [False, True])
def test_stacked_muon_is_muon_of_every_model(transposed: bool) -> None:
    """Fused parts and a stack of matrices, with the layout of either kind of linear layer."""
    torch.manual_seed(0)
    rates = [0.02, 0.1]
    shapes = {"fused": (8, 12) if transposed else (12, 8), "experts": (3, 4, 6), "gain": (6,)}
    stacked = {name: torch.randn(2, *shape).requires_grad_() for name, shape in shapes.items()}
    before = {name: value.detach().clone() for name, value in stacked.items()}
    models = [{name: nn.Parameter(value[k].detach().clone()) for name, value in stacked.items()} for k in range(2)]
    rows = (slice(0, 4), torch.tensor([4, 6, 8, 10]), torch.tensor([5, 7, 9, 11]))

    def members(model: dict[str, nn.Parameter]) -> list[TrainedParameter]:
        return [
            TrainedParameter("fused", model["fused"], (Part.Q,), True, True, transposed, rows),
            TrainedParameter("experts", model["experts"], (Part.FC1,), True, True),
            TrainedParameter("gain", model["gain"], (), False, False),
        ]

    config = Muon()
    together = StackedMuon(config, members(models[0]), stacked, rates)
    apart = [config.build(members(model), rate) for model, rate in zip(models, rates, strict=True)]
    for _ in range(3):
        for name, value in stacked.items():
            value.grad = torch.randn_like(value)
            for k, model in enumerate(models):
                model[name].grad = value.grad[k].clone()
        together.step(1.0)
        for optimizer in apart:
            optimizer.step()
    for name, value in stacked.items():
        for k, model in enumerate(models):
            torch.testing.assert_close(value[k], model[name], rtol=0, atol=2e-3, msg=f"{name} of model {k}")
            assert (value[k] - before[name][k]).abs().max() > 0.02, f"{name} of model {k} did not move"


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.gain = nn.Parameter(torch.randn(4))
        self.register_buffer("table", torch.randn(3))


@pytest.mark.parametrize("config", [Muon(), AdamW(weight_decay=0.1)], ids=["muon", "adamw"])
def test_a_model_goes_on_as_if_it_had_always_been_without_those_that_left(config: Any) -> None:
    torch.manual_seed(0)
    models = [Square() for _ in range(3)]
    rates = [0.1, 0.2, 0.3]

    def made(of: list[Square], learning_rates: list[float]) -> tuple[Stack, Any]:
        stack = Stack(of)
        members = [
            TrainedParameter("weight", of[0].weight, (Part.Q,), True, True),
            TrainedParameter("gain", of[0].gain, (), False, False),
        ]
        kind = StackedMuon if isinstance(config, Muon) else StackedAdamW
        return stack, kind(config, members, stack.parameters, learning_rates)

    others = copy.deepcopy([models[0], models[2]])
    stack, optimizer = made(models, rates)
    small, expected = made(others, [rates[0], rates[2]])

    def step(gradients: dict[str, Tensor], indices: list[int]) -> None:
        for name, gradient in gradients.items():
            stack.parameters[name].grad = gradient.clone()
            small.parameters[name].grad = gradient[indices].clone()
        optimizer.step(1.0)
        expected.step(1.0)

    shapes = {name: value.shape[1:] for name, value in stack.parameters.items()}
    step({name: torch.randn(3, *shape) for name, shape in shapes.items()}, [0, 2])
    left = copy.deepcopy(models[1])
    stack.keep([0, 2])
    optimizer.keep([0, 2])
    for _ in range(2):
        step({name: torch.randn(2, *shape) for name, shape in shapes.items()}, [0, 1])
    for name, value in stack.parameters.items():
        torch.testing.assert_close(value, small.parameters[name], rtol=0, atol=2e-3 if isinstance(config, Muon) else 0)
        for index, model in enumerate(others):
            assert not torch.equal(model.get_parameter(name), left.get_parameter(name))
            torch.testing.assert_close(models[2 * index].get_parameter(name), value[index], rtol=0, atol=0)
    assert torch.equal(stack.buffers["table"], torch.stack([models[0].table, models[2].table]))
    assert all(torch.equal(value, left.state_dict()[name]) for name, value in models[1].state_dict().items())


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Halving(GradientRule):
    """Halves a gradient above a norm of 0.02, so that its place after the clipping matters."""

    def start(self, parameters: Mapping[str, nn.Parameter]) -> RunningRule:
        return _Halving()


class _Halving:
    def __call__(self, step: int, parameters: Mapping[str, nn.Parameter]) -> Tensor | None:
        for parameter in parameters.values():
            if parameter.grad is not None and parameter.grad.norm() > 0.02:
                parameter.grad.mul_(0.5)
        return None

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        assert not state


@pytest.mark.parametrize("max_norm", [0.05, 1e6])
def test_stacked_clipping_is_clipping_of_every_model(max_norm: float, tmp_path: Path) -> None:
    common = [{"global_clip": {"max_norm": max_norm}}]
    assert compare(population("baseline", 3, common=common), tmp_path) < CLOSE


def test_a_rule_that_cannot_be_stacked_brings_all_rules_to_the_models(tmp_path: Path) -> None:
    """Clipping and then a rule without a stacked form: both act, in their order, on every model."""
    assert AdaGC().start_stacked() is None
    rules = (GlobalClip(max_norm=0.05), Halving())
    specs = [replace(s, protocol=replace(s.protocol, common=rules)) for s in population("baseline", 2)]
    assert compare(specs, tmp_path) < CLOSE


def test_stacked_clipping_passes_on_a_norm_that_is_not_finite() -> None:
    weight = torch.zeros(3, 2, 2, requires_grad=True)
    weight.grad = torch.tensor([1.0, math.nan, 4.0]).view(3, 1, 1).expand(3, 2, 2).clone()
    norms = GlobalClip(max_norm=1.0).start_stacked()({"weight": weight})
    assert norms is not None
    torch.testing.assert_close(norms, torch.tensor([2.0, math.nan, 8.0]), equal_nan=True)
    assert weight.grad[1].isnan().all()
    torch.testing.assert_close(torch.linalg.vector_norm(weight.grad[[0, 2]].flatten(1), dim=1), torch.ones(2))


class Own(nn.Module):
    """A user's decoder with grouped queries, a mask, and a buffer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, 16)
        self.qkv = nn.Linear(16, 16 + 8 + 8)
        self.out = nn.Linear(16, config.vocab_size)
        self.register_buffer("mask", torch.ones(config.context, config.context, dtype=torch.bool).tril())

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        q, k, v = self.qkv(x).split([16, 8, 8], -1)
        q, k, v = (t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (q, k, v))
        x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=True).transpose(1, 2).flatten(2)
        return self.out(x)


class Dropping(Own):
    def forward(self, tokens: Tensor) -> Tensor:
        return F.dropout(super().forward(tokens), 0.1, training=self.training)


class Asking(Own):
    def forward(self, tokens: Tensor) -> Tensor:
        logits = super().forward(tokens)
        return logits if logits.abs().max().item() < 1e9 else logits * 0


def test_a_users_model_is_stacked(tmp_path: Path) -> None:
    specs = [replace(spec, code=UserCode(model=Own)) for spec in population("baseline", 4)]
    assert compare(specs, tmp_path) < CLOSE


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (replace(run_of(), code=UserCode(model=Dropping)), "random"),
        (replace(run_of(), code=UserCode(model=Asking)), "item"),
        (run_of("qk_clip"), "qk_clip acts on the parameters after a step"),
        (run_of(probes={"preset": "cheap", "every": 2}), "probes read one model at a time"),
    ],
    ids=["dropout", "item", "qk_clip", "probes"],
)
def test_what_cannot_be_stacked_is_trained_alone_with_the_same_bits_and_says_why(
    spec: RunSpec, reason: str, tmp_path: Path
) -> None:
    made = carry_out(spec, tmp_path / "together")
    record = load_environment(tmp_path / "together" / made.run_id)
    assert "trained alone" in record["population"]
    assert reason in record["population"]
    execute(spec, tmp_path / "alone")
    rows = "steps.jsonl"
    assert (tmp_path / "together" / made.run_id / rows).read_bytes() == (
        tmp_path / "alone" / made.run_id / rows
    ).read_bytes()


def test_exhausted_memory_is_no_reason_to_train_alone() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), refusing():
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(NotStackableError, match="no rule"), refusing():
        raise RuntimeError("no rule for this operation")


def test_a_run_that_diverges_ends_and_leaves_the_others_alone(tmp_path: Path) -> None:
    tables = {"common": [], "training": {"steps": 30, "batch_size": 4}}
    calm = [run_of("baseline", seed, **tables) for seed in (0, 1)]
    wild = run_of("baseline", 2, 2.0**40, **tables)
    mixed = carry_out_together([calm[0], wild, calm[1]], ["", "", ""], tmp_path / "mixed")
    assert mixed[1].stopped == "non_finite"
    assert mixed[1].steps < 30
    assert [mixed[0].stopped, mixed[2].stopped] == [None, None]
    ended = [(tmp_path / "mixed" / outcome.run_id / "outcome.json").stat().st_mtime_ns for outcome in mixed]
    assert ended[1] < min(ended[0], ended[2]), "its outcome waited for the others"
    apart = carry_out_together(calm, ["", ""], tmp_path / "apart")
    names = [outcome.run_id for outcome in apart]
    assert worst(tmp_path / "mixed", tmp_path / "apart", names) < CLOSE
    assert len(load_steps(tmp_path / "mixed" / mixed[1].run_id)) == mixed[1].steps + 1


def test_a_finished_run_of_a_group_is_not_trained_again(tmp_path: Path) -> None:
    specs = population("baseline", 3)
    first = carry_out(specs[1], tmp_path)
    before = (tmp_path / first.run_id / "outcome.json").read_bytes()
    made = carry_out_together(specs, ["", first.run_id, ""], tmp_path)
    assert made[1] == first
    assert (tmp_path / first.run_id / "outcome.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_population_is_part_of_the_id_and_neutral_when_off() -> None:
    spec = run_of()
    off = replace(spec, protocol=replace(spec.protocol, training=replace(spec.protocol.training, population=False)))
    basis = basis_of(spec, "data")
    assert id_on(spec, basis) != id_on(off, basis)
    assert "population" not in settled(off)["training"]


@pytest.mark.parametrize("masked", ["none", "shared", "shared by batch", "own", "bias"])
def test_folded_attention_is_attention_of_each_model_in_value_and_gradient(masked: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 4, 5, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    masks = {
        "none": None,
        "shared": torch.ones(5, 5, dtype=torch.bool).tril(),
        "shared by batch": torch.randn(2, 1, 5, 5, dtype=torch.float64),
        "own": torch.rand(3, 5, 5) < 0.7,
        "bias": torch.randn(3, 2, 4, 5, 5, dtype=torch.float64),
    }
    mask = masks[masked]
    if masked == "own":
        mask = mask | torch.eye(5, dtype=torch.bool)  # type: ignore[operator]
    dim = 0 if masked in ("own", "bias") else None

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    with FoldedAttention():
        together = vmap(attend, in_dims=(0, 0, 0, dim))(q, k, v, mask)
    apart = torch.stack([attend(q[i], k[i], v[i], mask if dim is None else mask[i]) for i in range(3)])  # type: ignore[index]
    torch.testing.assert_close(together, apart)
    weight = torch.randn_like(apart)
    ours = torch.autograd.grad((together * weight).sum(), (q, k, v))
    expected = torch.autograd.grad((apart * weight).sum(), (q, k, v))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_attention_with_dropout_is_refused() -> None:
    x = torch.randn(2, 1, 1, 3, 4)
    with FoldedAttention(), pytest.raises(RuntimeError, match="dropout"):
        vmap(lambda q: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5))(x)


# --- as an executor ---------------------------------------------------------------------------------------------------


def test_the_executor_groups_the_runs_of_an_arm_and_gives_the_labels_of_single_runs(
    tiny_tables: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    def study() -> Study:
        return Study.of(read_any_study(tiny_tables(training={"population": True}), "tiny"))

    together = study().run(tmp_path / "together", executor=Population(size=5))
    alone = study().run(tmp_path / "alone", workers=0)
    assert {run.run_id: run.label for run in together.runs} == {run.run_id: run.label for run in alone.runs}
    sizes = {load_environment(folder)["population"] for folder in (tmp_path / "together" / "runs").iterdir()}
    assert max(size for size in sizes if isinstance(size, int)) > 1


def test_runs_of_one_structure_differ_in_lr_and_seeds_only() -> None:
    key = structure_of(run_of())
    assert structure_of(run_of(seed=3, learning_rate=0.5)) == key
    assert structure_of(run_of("qk_norm")) != key
    assert structure_of(run_of(training={"steps": 9})) != key
    assert structure_of(replace(run_of(), code=UserCode(model=Own))) != key


def test_without_the_setting_the_executor_is_refused_with_the_remedy(
    tiny_tables: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    study = Study.of(read_any_study(tiny_tables(), "tiny"))
    with pytest.raises(ConfigError, match=r"--set training\.population=true"):
        study.run(tmp_path / "study", executor=Population())
    assert not (tmp_path / "study").exists()


def test_a_group_that_fails_names_the_run_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = population("baseline", 2)
    names = [outcome.run_id for outcome in carry_out_together(specs, ["", ""], tmp_path / "first")]
    executor = PopulationExecutor(4)
    executor.submit(Job(names[0], specs[0], tmp_path / "runs"))
    executor.submit(Job("0" * 20, specs[1], tmp_path / "runs"))
    reports = {report.name: report for report in executor.poll(0)}
    assert reports[names[0]].kind == "done"
    assert reports["0" * 20].kind == "unusable"
    assert executor.poll(0) == []


def test_every_method_can_be_stacked_or_is_refused_with_a_reason(tmp_path: Path) -> None:
    """Nothing is stacked that gives other losses: each method that is not refused has the losses of single runs."""
    refused = {}
    for slug, method in methods.catalogue().items():
        replaces = any(getattr(one, "replaces", ()) for one in method.interventions)
        specs = population(slug, 2, common=[] if replaces else [{"global_clip": {}}])
        try:
            refuse_unstackable(specs[0])
            assert compare(specs, tmp_path / slug) < CLOSE, slug
        except NotStackableError as error:
            refused[slug] = str(error)
        except AssertionError:
            made = carry_out(specs[0], tmp_path / f"{slug}-why")
            record = load_environment(tmp_path / f"{slug}-why" / made.run_id)
            assert "trained alone" in str(record["population"]), slug
            refused[slug] = record["population"]
    assert set(refused) == {"qk_clip", "update_clip"}
