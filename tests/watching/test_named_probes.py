"""Probes asked for by name: two quantities and nothing else, variance by layer, and statistics of all weights."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.probes.training_map import OF_ENTRIES, OF_MATRICES
from trimtab.watching import EmptyReadingError, WatchError

TIED = GPTConfig(vocab_size=32, context=8, num_layers=2, num_heads=2, width=16, init_std=0.3)
UNTIED = replace(TIED, positions="rotary", tied=False, norm="rms_norm", activation="squared_relu")
MICRO_BATCHES = 3
WANTED = ("tev", "variance")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterable[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Unknown(nn.Module):
    """A model that no host knows; its second layer has a frozen bias."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(32, 6)
        self.stack = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.stack[1].bias.requires_grad_(False)
        self.out = nn.Linear(6, 32)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for layer in self.stack:
            x = x + layer(x).relu()
        return self.out(x)


def make(kind: str) -> nn.Module:
    torch.manual_seed(3)
    return Unknown() if kind == "by names" else GPT(TIED if kind == "tied" else UNTIED)


def subject(model: nn.Module) -> Any:
    return host_for(model) if isinstance(model, GPT) else model


def loss_of(model: nn.Module, seed: int) -> Tensor:
    ids = torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(seed))
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def step(model: nn.Module, optimizer: torch.optim.Optimizer, turn: int, parts: int = MICRO_BATCHES) -> None:
    for part in range(parts):
        (loss_of(model, 10 * turn + part) / parts).backward()
    optimizer.step()
    optimizer.zero_grad()


def variances(model: nn.Module, turn: int, parts: int = MICRO_BATCHES) -> dict[str, float]:
    """Sum over the entries of each parameter of the sample variance over micro-batches, from explicit gradients."""
    exact = copy.deepcopy(model).double()
    named = {name: p for name, p in exact.named_parameters() if p.requires_grad}
    kept: dict[str, list[Tensor]] = {name: [] for name in named}
    for part in range(parts):
        gradients = torch.autograd.grad(loss_of(exact, 10 * turn + part) / parts, list(named.values()))
        for name, gradient in zip(named, gradients, strict=True):
            kept[name].append(gradient)
    return {
        name: math.fsum(
            math.fsum((g[i] - math.fsum(h[i] for h in flat) / parts) ** 2 for g in flat) / (parts - 1)
            for i in range(len(flat[0]))
        )
        for name, flat in ((name, [g.flatten().tolist() for g in some]) for name, some in kept.items())
    }


def by_layer(of_parameters: dict[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in of_parameters.items():
        number = re.match(r"(?:blocks|stack)\.(\d+)\.", name)
        where = f"layer.{number[1]}" if number else "rest"
        found[where] = found.get(where, 0.0) + value
    return found


KINDS = pytest.mark.parametrize("kind", ["tied", "untied", "by names"])


@KINDS
@pytest.mark.parametrize("preset", [probes.named(*WANTED), probes.full], ids=["named", "full"])
def test_variance_of_model_embedding_and_layers_is_that_of_explicit_gradients(kind: str, preset: Any) -> None:
    model = make(kind).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    w = watch(subject(model), preset, optimizer=optimizer, every=1)
    for turn in range(2):
        expected = variances(model, turn)
        step(model, optimizer, turn)
        layers = by_layer(expected)
        row = {key: value for key, value in w.last.items() if "_grad/" in key and key.endswith("/variance")}
        assert row.pop("all_grad/model/variance") == pytest.approx(math.fsum(expected.values()), rel=1e-9)
        for where in ("layer.0", "layer.1"):
            assert row.pop(f"all_grad/{where}/variance") == pytest.approx(layers[where], rel=1e-9)
        ((_, of_embedding),) = row.items()
        table = "tokens.weight" if kind == "by names" else "token_embedding.weight"
        assert of_embedding == pytest.approx(expected[table], rel=1e-9)


@KINDS
def test_layers_and_the_rest_add_up_to_the_whole(kind: str) -> None:
    model = make(kind).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    w = watch(subject(model), probes.named("variance"), optimizer=optimizer, every=1)
    rest = by_layer(variances(model, 0))["rest"]
    step(model, optimizer, 0)
    layers = [value for key, value in w.last.items() if re.fullmatch(r"all_grad/layer\.\d+/variance", key)]
    assert len(layers) == 2
    assert math.fsum(layers) + rest == pytest.approx(w.last["all_grad/model/variance"], rel=1e-9)


@KINDS
def test_in_single_precision_variance_is_still_right(kind: str) -> None:
    model = make(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    w = watch(subject(model), probes.named("variance"), optimizer=optimizer, every=1)
    expected = variances(model, 0)
    step(model, optimizer, 0)
    assert w.last["all_grad/model/variance"] == pytest.approx(math.fsum(expected.values()), rel=1e-4)
    for where in ("layer.0", "layer.1"):
        assert w.last[f"all_grad/{where}/variance"] == pytest.approx(by_layer(expected)[where], rel=1e-4)


@KINDS
def test_spread_of_token_vectors_is_that_of_plain_loops(kind: str) -> None:
    model = make(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    w = watch(subject(model), probes.named("tev"), optimizer=optimizer, every=1)
    step(model, optimizer, 0)
    table = (model.tokens if isinstance(model, Unknown) else model.token_embedding).weight  # after the step
    deviations: list[float] = []
    for row in table.detach().double().tolist():
        mean = math.fsum(row) / len(row)
        deviations.append(math.sqrt(math.fsum((v - mean) ** 2 for v in row) / len(row)))
    mean = math.fsum(deviations) / len(deviations)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in deviations) / len(deviations))
    place = "embedding_weight/tokens" if kind == "by names" else "embedding_weight/model"
    assert w.last[f"{place}/tev_mean"] == pytest.approx(mean, rel=1e-5)
    assert w.last[f"{place}/tev_std"] == pytest.approx(spread, rel=1e-4)
    assert ("head_weight/model/tev_mean" in w.last) is (kind == "untied")


@KINDS
def test_two_probes_by_name_read_what_the_full_preset_reads_of_them_and_nothing_else(kind: str) -> None:
    rows: list[list[dict[str, float]]] = []
    for preset in (probes.named(*WANTED), probes.full):
        model = make(kind)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        w = watch(subject(model), preset, optimizer=optimizer, every=1)
        rows.append([])
        for turn in range(3):
            step(model, optimizer, turn)
            rows[-1].append(w.last)
    for few, many in zip(*rows, strict=True):
        assert few == {key: many[key] for key in few}
        assert {key.rsplit("/", 1)[-1].split("_")[0] for key in few} == {"step", "tev", "variance"}
        wanted = [key for key in many if "/tev_" in key or ("_grad/" in key and key.endswith("/variance"))]
        assert set(few) == {"step", *wanted}


@pytest.mark.parametrize("slug", list(probes.catalogue()))
def test_every_probe_can_be_read_alone_and_says_what_it_says_among_all(slug: str) -> None:
    rows: list[dict[str, float]] = []
    for preset in (probes.named(slug), probes.named("training_map", "sampled_max", of=probes.full)):
        model = make("tied")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        w = watch(subject(model), preset, optimizer=optimizer, every=1)
        step(model, optimizer, 0)
        rows.append(w.last)
    assert len(rows[0]) > 1
    # Not bitwise: a norm beside kurtosis is taken from the sums of that.
    assert rows[0] == pytest.approx({key: rows[1][key] for key in rows[0]}, rel=1e-6, abs=1e-8)


def test_two_probes_by_name_hook_no_point_and_read_no_weight() -> None:
    model = make("untied")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inner = [module for name, module in model.named_modules() if name]
    w = watch(subject(model), probes.named(*WANTED), optimizer=optimizer, every=1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in inner)
    step(model, optimizer, 0)
    assert not {"tensors", "weights"} & {what for what, seconds in w.seconds.items() if seconds > 1e-3}
    assert w.seconds["noise"] > 0
    assert w.seconds["tables"] > 0


@KINDS
def test_training_is_bitwise_the_same_with_probes_by_name(kind: str) -> None:
    states: list[dict[str, Tensor]] = []
    for watched in (False, True):
        model = make(kind)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if watched:
            watch(subject(model), probes.named("tev", "variance", "training_map"), optimizer=optimizer, every=2)
        for turn in range(5):
            step(model, optimizer, turn)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_reading_of_variance_without_a_forward_pass_is_refused() -> None:
    model = make("tied")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch(subject(model), probes.named("variance"), optimizer=optimizer, every=1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(EmptyReadingError, match="step 1"):
        optimizer.step()


@pytest.mark.parametrize("slug", ["tev", "training_map"])
def test_a_reading_of_weights_alone_needs_no_forward_pass(slug: str) -> None:
    model = make("tied")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    w = watch(subject(model), probes.named(slug), optimizer=optimizer, every=1)
    optimizer.step()
    assert w.last["step"] == 1
    assert len(w.last) > 1


def test_one_micro_batch_has_no_variance_and_no_error() -> None:
    model = make("tied")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    w = watch(subject(model), probes.named(*WANTED), optimizer=optimizer, every=1)
    step(model, optimizer, 0, parts=1)
    assert not [key for key in w.last if key.endswith("/variance")]
    assert "embedding_weight/model/tev_mean" in w.last


def test_probes_by_name_come_on_top_of_a_preset_once() -> None:
    more = probes.named("rms", "variance", "variance", of=probes.cheap)
    assert [probe.slug for probe in more.probes] == [*(probe.slug for probe in probes.cheap.probes), "variance"]
    assert (more.every, more.logit_rows) == (probes.cheap.every, probes.cheap.logit_rows)
    assert probes.named().probes == ()


def test_an_unknown_slug_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(ValueError, match=r"'tve'.*tev.*variance.*training_map"):
        probes.named("tev", "tve")


# Statistics of all weights together.


def oracle(model: nn.Module) -> dict[str, float]:
    matrices = [p.detach().double().numpy() for p in model.parameters() if p.ndim == 2]
    biases = [p.detach().double().numpy() for name, p in model.named_parameters() if name.endswith("bias")]
    rows: list[tuple[float, ...]] = []
    for matrix in matrices:
        singular = np.linalg.svd(matrix, compute_uv=False)
        l1 = math.fsum(abs(v) for v in matrix.ravel())
        l2 = math.sqrt(math.fsum(v * v for v in matrix.ravel()))
        trace = math.fsum(matrix[i, i] for i in range(min(matrix.shape)))
        mean = math.fsum(singular) / len(singular)
        variance = math.fsum((s - mean) ** 2 for s in singular) / len(singular)
        rows.append((l1, l2, l1 / l2, trace, max(singular), trace / max(singular), mean, variance))
    found = {
        f"all_weights/model/{name}": math.fsum(column) / len(rows)
        for name, column in zip(OF_MATRICES, zip(*rows, strict=True), strict=True)
    }
    for what, some in (("weights", matrices), ("biases", biases)):
        if some:
            entries = sorted(float(v) for one in some for v in one.ravel())
            mean = math.fsum(entries) / len(entries)
            values = (
                mean,
                entries[(len(entries) - 1) // 2],
                math.fsum((v - mean) ** 2 for v in entries) / len(entries),
            )
            found |= {f"all_{what}/model/{name}": v for name, v in zip(OF_ENTRIES, values, strict=True)}
    return found


def read_map(model: nn.Module) -> dict[str, float]:
    w = watch(model, probes.named("training_map"))
    model(torch.zeros(1, 4) if isinstance(model, nn.Sequential) else torch.zeros(1, 4, dtype=torch.long))
    row = dict(w.read())
    w.remove()
    return {key: value for key, value in row.items() if key != "step"}


def stirred(model: nn.Module) -> nn.Module:
    """Biases that are not all zero."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


@KINDS
def test_the_statistics_of_all_weights_are_those_of_a_plain_decomposition(kind: str) -> None:
    model = stirred(make(kind))
    found, expected = read_map(model), oracle(model)
    assert found.keys() == expected.keys()
    assert len(found) == (11 if kind == "untied" and not any("bias" in n for n, _ in model.named_parameters()) else 14)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_the_trace_of_a_matrix_that_is_not_square_is_the_sum_of_its_diagonal() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 9.0, 9.0, 9.0], [9.0, 2.0, 9.0, 9.0]]))
    assert read_map(model)["all_weights/model/trace"] == 3.0


def test_a_model_without_biases_has_no_statistics_of_them() -> None:
    torch.manual_seed(0)
    found = read_map(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)))
    assert len(found) == 11
    assert not [key for key in found if "biases" in key]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_make_statistics_that_are_not_and_no_crash(bad: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight[0, 0] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_map(model)
    assert all(math.isnan(found[f"all_weights/model/{name}"]) for name in OF_MATRICES)
    assert not math.isfinite(found["all_weights/model/mean"])
    assert all(math.isfinite(value) for key, value in found.items() if "biases" in key)


def test_the_first_numbers_of_names_are_layers_and_nothing_else_is() -> None:
    model = nn.ModuleDict({"h2o": nn.Linear(3, 3), "7": nn.Linear(3, 3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.forward = lambda x: model["7"](model["h2o"](x))  # type: ignore[method-assign]
    w = watch(model, probes.named("variance"), optimizer=optimizer, every=1)
    for seed in range(2):
        model(torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
    optimizer.step()
    assert sorted(key for key in w.last if key != "step") == ["all_grad/layer.7/variance", "all_grad/model/variance"]


def test_readings_by_sequence_of_models_do_not_mix() -> None:
    """Two watches, each with its own probes, on one model."""
    model = make("tied")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    few = watch(subject(model), probes.named("variance"), optimizer=optimizer, every=1)
    more: Sequence[str] = ("tev", "variance")
    many = watch(subject(model), probes.named(*more), optimizer=optimizer, every=2)
    for turn in range(4):
        step(model, optimizer, turn)
    assert (few.last["step"], many.last["step"]) == (4, 4)
    assert few.last == {key: many.last[key] for key in few.last}


def test_a_reading_whose_gradients_were_clipped_unseen_is_left_out_once_and_right_from_then_on() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(width=16, num_layers=2, num_heads=2, context=8)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    tokens = torch.randint(0, 256, (3, 4, 9))
    seen: list[float | None] = []
    wanted: list[float] = []
    with watch(host_for(model), probes.named("variance"), optimizer=optimizer, every=1) as watched:
        for step in range(6):
            apart: list[Tensor] = []
            for batch in tokens:
                before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
                F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
                pairs = zip(model.parameters(), before, strict=True)
                apart.append(torch.cat([(p.grad if g is None else p.grad - g).flatten() for p, g in pairs]))
            if step >= 3:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            optimizer.zero_grad()
            seen.append(watched.last.get("all_grad/model/variance"))
            wanted.append(torch.stack(apart).var(0).sum().item())
    # Nobody told of the clipping that began with the fourth step: what was left of its gradients is no variance.
    assert seen[3] is None
    for found, right in zip(seen[:3] + seen[4:], wanted[:3] + wanted[4:], strict=True):
        assert found == pytest.approx(right, rel=1e-8)


def test_gradients_that_were_seen_before_clipping_are_read_at_every_step() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(width=16, num_layers=2, num_heads=2, context=8)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    tokens = torch.randint(0, 256, (3, 4, 9))
    found: list[float] = []
    with watch(host_for(model), probes.named("variance"), optimizer=optimizer, every=1) as watched:
        for _ in range(4):
            for batch in tokens:
                F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
            watched.see_gradients()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            optimizer.zero_grad()
            found.append(watched.last["all_grad/model/variance"])
    assert found == [pytest.approx(found[0], rel=1e-12)] * 4  # once the sum is taken each time, then once


@pytest.mark.parametrize(
    ("slug", "only", "message"),
    [
        ("max_logit", ["residual/*"], "'max_logit'.*no attention"),
        ("tev", ["residual/*"], "'tev'.*no weight"),
        ("update_ratio", [], "'update_ratio'.*no optimizer"),
        ("below_eps", [], "'below_eps'.*no optimizer"),
    ],
)
def test_a_probe_by_name_that_nothing_can_be_read_of_is_refused(slug: str, only: list[str], message: str) -> None:
    model = make("tied")
    with pytest.raises(WatchError, match=message):
        watch(host_for(model), probes.named("rms", slug), only=only)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_preset_of_which_no_probe_reads_anything_is_refused() -> None:
    model = make("tied")
    updates = replace(probes.cheap, probes=tuple(p for p in probes.cheap.probes if p.slug == "update_ratio"))
    with pytest.raises(WatchError, match="no probe of the preset 'cheap' reads anything of GPT"):
        watch(host_for(model), updates)
