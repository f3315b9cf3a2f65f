"""Every statistic equals a plain second implementation of its definition, in float64."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab import GPT, GPTConfig, Method, Watch, host_for, methods, probes, watch
from trimtab.host import AttentionPoint
from trimtab.testing.families import FAMILIES, hugging_face
from trimtab.watching import attention
from trimtab.watching.attention import query_rows

LEARNED = GPTConfig(vocab_size=32, context=8, num_layers=2, num_heads=2, width=16, init_std=0.3)
ROTARY = replace(LEARNED, positions="rotary", tied=False, norm="rms_norm", activation="squared_relu")
CONFIGS = {"learned": LEARNED, "rotary": ROTARY}
STATISTICS = ("rms", "l2_norm", "max_abs", "mean", "kurtosis", "non_finite")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterable[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(config: GPTConfig = LEARNED) -> GPT:
    torch.manual_seed(3)
    return GPT(config).double()


def tokens(seed: int = 0, batch: int = 2, length: int = 8) -> Tensor:
    return torch.randint(0, 32, (batch, length), generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    ids = tokens(seed, length=8)
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def sgd(model: nn.Module, lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def plain(tensors: Sequence[Tensor]) -> dict[str, float]:
    """All six statistics of the entries of some tensors, by loops over Python floats."""
    values = [v for x in tensors for v in x.detach().double().flatten().tolist()]
    finite = [v for v in values if math.isfinite(v)]
    mean = math.fsum(finite) / len(finite)
    square = math.fsum(v * v for v in finite) / len(finite)
    second = math.fsum((v - mean) ** 2 for v in finite) / len(finite)
    fourth = math.fsum((v - mean) ** 4 for v in finite) / len(finite)
    return {
        "rms": math.sqrt(square),
        "l2_norm": math.sqrt(square * len(finite)),
        "max_abs": max(abs(v) for v in finite),
        "mean": mean,
        "kurtosis": fourth / second**2 if second > 0 else math.nan,
        "non_finite": float(len(values) - len(finite)),
    }


def norm(*tensors: Tensor) -> float:
    return math.sqrt(math.fsum(v * v for x in tensors for v in x.detach().double().flatten().tolist()))


def near(value: float, rel: float = 1e-9) -> Any:
    return pytest.approx(value, rel=rel, abs=1e-11, nan_ok=True)


def assert_statistics(
    row: dict[str, float], place: str, tensors: Sequence[Tensor], names: Sequence[str] = STATISTICS
) -> None:
    expected = plain(tensors)
    for name in names:
        assert row[f"{place}/{name}"] == near(expected[name], 1e-7 if name == "kurtosis" else 1e-9), f"{place}/{name}"


def places_of(model: GPT) -> dict[str, tuple[nn.Module, str]]:
    found: dict[str, tuple[nn.Module, str]] = {
        "embedding_output/model": (model.blocks[0], "input"),
        "final_norm_output/model": (model.final_norm, "output"),
        "logits/model": (model.head, "output"),
    }
    for layer, block in enumerate(model.blocks):
        linears = {"qkv": block.attn.qkv, "proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
        for name, linear in linears.items():
            found |= {
                f"{name}_input/layer.{layer}": (linear, "input"),
                f"{name}_output/layer.{layer}": (linear, "output"),
            }
        found[f"residual/layer.{layer}"] = (block, "output")
    return found


class Capture:
    """Keeps every tensor that passes the places of a model, with its gradient."""

    def __init__(self, places: dict[str, tuple[nn.Module, str]]) -> None:
        self.live: dict[str, list[Tensor]] = {name: [] for name in places}
        self.kept: dict[str, list[Tensor]] = {name: [] for name in places}
        for name, (module, side) in places.items():
            if side == "input":
                module.register_forward_pre_hook(lambda _, args, name=name: self._take(name, args[0]))
            else:
                module.register_forward_hook(lambda _, args, output, name=name: self._take(name, output))

    def _take(self, name: str, x: Tensor) -> None:
        self.kept[name].append(x.detach().clone())
        if x.requires_grad:
            x.retain_grad()
        self.live[name].append(x)

    def gradients(self, name: str) -> list[Tensor]:
        found = [x.grad for x in self.live[name]]
        assert all(g is not None for g in found)
        return [g for g in found if g is not None]

    def clear(self) -> None:
        for name in self.live:
            self.live[name].clear()
            self.kept[name].clear()


def place_of_parameter(name: str) -> tuple[str, str]:
    """What and where of a parameter's metrics."""
    parts = name.split(".")
    if name == "token_embedding.weight":
        return "embedding_weight", "model"
    if name == "head.weight":
        return "head_weight", "model"
    if parts[0] == "blocks" and parts[-1] == "weight" and parts[-2] in ("qkv", "proj", "fc1", "fc2"):
        return f"{parts[-2]}_weight", f"layer.{parts[1]}"
    return "parameter", name


# Tensors that pass.


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_activations_equal_plain_loops(config: GPTConfig) -> None:
    model = make(config)
    capture = Capture(places_of(model))
    opt = sgd(model)
    w = watch(host_for(model), probes.full, optimizer=opt, every=1, exact=True)
    for seed in range(2):
        capture.clear()
        loss_of(model, seed).backward()
        opt.step()
        opt.zero_grad()
        for place, tensors in capture.kept.items():
            assert_statistics(w.last, place, tensors)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_gradients_of_inputs_and_outputs_equal_retained_ones(config: GPTConfig) -> None:
    model = make(config)
    capture = Capture(places_of(model))
    opt = sgd(model)
    w = watch(host_for(model), probes.standard, optimizer=opt, every=1, exact=True)
    for seed in range(2):
        capture.clear()
        loss_of(model, seed).backward()
        opt.step()
        opt.zero_grad()
        for place in capture.live:
            what, where = place.split("/")
            if what != "logits":
                assert_statistics(w.last, f"{what}_grad/{where}", capture.gradients(place))


def test_micro_batches_are_merged_as_if_their_tensors_were_one() -> None:
    model = make()
    capture = Capture(places_of(model))
    opt = sgd(model)
    w = watch(host_for(model), probes.standard, optimizer=opt, every=1, exact=True)
    for seed in range(3):
        (loss_of(model, seed) / 3).backward()
    opt.step()
    for place, tensors in capture.kept.items():
        assert len(tensors) == 3
        assert_statistics(w.last, place, tensors)
        what, where = place.split("/")
        if what != "logits":
            assert_statistics(w.last, f"{what}_grad/{where}", capture.gradients(place))
    sums = [math.log(math.fsum(math.exp(v) for v in r)) for x in capture.kept["logits/model"] for r in x.flatten(0, 1)]
    assert w.last["logits/model/log_partition"] == near(math.fsum(sums) / len(sums))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_log_partition_is_the_mean_log_of_summed_exponentials(config: GPTConfig) -> None:
    model = make(config)
    w = watch(host_for(model), probes.cheap)
    logits = model(tokens())
    values = [math.log(math.fsum(math.exp(v) for v in row)) for row in logits.detach().flatten(0, 1).tolist()]
    assert w.read()["logits/model/log_partition"] == near(math.fsum(values) / len(values))


def test_non_finite_entries_are_counted_and_left_out_of_every_other_statistic() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    x[0, 1], x[2, 3], x[4, 0] = math.nan, math.inf, -math.inf
    w = watch(model, probes.full)
    model(x)
    assert_statistics(w.read(), "input/0", [x])


def test_kurtosis_of_shifted_entries_is_that_of_the_centred_ones() -> None:
    torch.manual_seed(0)
    x = 50 + torch.randn(40, 8, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(8, 2)).double()
    w = watch(model, probes.full)
    model(x)
    assert w.read()["input/0/kurtosis"] == pytest.approx(plain([x])["kurtosis"], rel=1e-6)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 1e-3, 0.7])
def test_kurtosis_of_constant_entries_is_nan(constant: float) -> None:
    model = nn.Sequential(nn.Linear(7, 2))
    w = watch(model, probes.full)
    model(torch.full((3, 7), constant))
    assert math.isnan(w.read()["input/0/kurtosis"])


# Parameters and the optimizer's step.


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("preset", [probes.standard, probes.full], ids=["standard", "full"])
def test_weights_equal_plain_loops_after_the_step(config: GPTConfig, preset: Any) -> None:
    model = make(config)
    opt = sgd(model, 0.1)
    w = watch(host_for(model), preset, optimizer=opt, every=1)
    loss_of(model).backward()
    opt.step()
    names = STATISTICS if preset.name == "full" else ("rms", "l2_norm")
    seen = 0
    for name, p in model.named_parameters():
        what, where = place_of_parameter(name)
        if what != "parameter":
            seen += 1
            assert_statistics(w.last, f"{what}/{where}", [p], names)
    assert seen == 4 * 2 + (1 if config.tied else 2)
    assert ("head_weight/model/rms" in w.last) is not config.tied


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_gradient_norm_of_every_parameter_equals_a_plain_loop(config: GPTConfig) -> None:
    model = make(config)
    opt = sgd(model)
    w = watch(host_for(model), probes.cheap, optimizer=opt, every=1)
    for seed in range(2):
        loss_of(model, seed).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        opt.step()
        opt.zero_grad()
        for name, gradient in gradients.items():
            what, where = place_of_parameter(name)
            assert w.last[f"{what}_grad/{where}/l2_norm"] == near(norm(gradient)), name
        assert w.last["all_grad/model/l2_norm"] == near(norm(*gradients.values()))


@pytest.mark.parametrize("early", [False, True])
def test_gradients_are_read_before_clipping_only_where_asked(early: bool) -> None:
    model = make()
    opt = sgd(model)
    w = watch(host_for(model), probes.cheap, optimizer=opt, every=1)
    loss_of(model).backward()
    before = norm(*(p.grad for p in model.parameters() if p.grad is not None))
    if early:
        w.see_gradients()
    nn.utils.clip_grad_norm_(model.parameters(), before / 10)
    after = norm(*(p.grad for p in model.parameters() if p.grad is not None))
    opt.step()
    assert w.last["all_grad/model/l2_norm"] == near(before if early else after)


OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.3, betas=(0.9, 0.95)),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3, weight_decay=0.1, eps=1e-4),
    "sgd": lambda p: torch.optim.SGD(p, lr=3e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=3e-3, amsgrad=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_updates_equal_the_difference_of_copied_weights(kind: str) -> None:
    model = make()
    opt = OPTIMIZERS[kind](model.parameters())
    w = watch(host_for(model), probes.standard, optimizer=opt, every=1)
    for seed in range(3):
        loss_of(model, seed).backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        opt.step()
        opt.zero_grad()
        moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            what, where = place_of_parameter(name)
            assert w.last[f"{what}_update/{where}/l2_norm"] == near(norm(moved[name]), 1e-7), (seed, name)
            assert w.last[f"{what}/{where}/update_ratio"] == near(norm(moved[name]) / norm(p), 1e-7), (seed, name)
        assert w.last["all_update/model/l2_norm"] == near(norm(*moved.values()), 1e-7)


def test_updates_follow_the_learning_rate_of_each_group() -> None:
    model = make()
    decayed = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.5, "lr": 1e-2}, {"params": rest, "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step))
    w = watch(host_for(model), probes.cheap, optimizer=opt, every=1)
    for seed in range(3):
        loss_of(model, seed).backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        opt.step()
        schedule.step()
        opt.zero_grad()
        for name, p in model.named_parameters():
            what, where = place_of_parameter(name)
            expected = norm(p.detach() - before[name])
            assert w.last[f"{what}_update/{where}/l2_norm"] == near(expected, 1e-4), (seed, name)


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_update_rms_and_below_eps_equal_loops_over_adams_state(eps: float) -> None:
    model = make()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=eps)
    w = watch(host_for(model), probes.standard, optimizer=opt, every=1)
    for seed in range(3):
        loss_of(model, seed).backward()
        opt.step()
        for name, p in model.named_parameters():
            what, where = place_of_parameter(name)
            assert p.grad is not None
            fair = [v / (1 - 0.95 ** (seed + 1)) for v in opt.state[p]["exp_avg_sq"].flatten().tolist()]
            gradient = p.grad.flatten().tolist()
            total = math.fsum(g * g / max(v, eps * eps) for g, v in zip(gradient, fair, strict=True))
            below = sum(math.sqrt(v) < eps for v in fair)
            assert w.last[f"{what}/{where}/update_rms"] == near(math.sqrt(total / len(fair)), 1e-7), (seed, name)
            assert w.last[f"{what}/{where}/below_eps"] == near(below / len(fair)), (seed, name)
        opt.zero_grad()


def test_update_rms_is_finite_with_a_vanishing_eps() -> None:
    model = make().float()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-30)
    model.head.weight.register_hook(lambda g: torch.where(g.abs() < 1e-2, 0.0, g))  # entries that get no gradient
    w = watch(host_for(model), probes.standard, optimizer=opt, every=1)
    loss_of(model).backward()
    opt.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert math.isfinite(w.last["embedding_weight/model/update_rms"])


@pytest.mark.parametrize("lr", [3e-2, 1e-5])
def test_updates_in_bfloat16_are_what_rounding_leaves_of_them(lr: float) -> None:
    model = make().bfloat16()
    opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    w = watch(host_for(model), probes.cheap, optimizer=opt, every=1)
    for seed in range(2):
        loss_of(model, seed).backward()
        before = {name: p.detach().double() for name, p in model.named_parameters()}
        opt.step()
        opt.zero_grad()
        for name, p in model.named_parameters():
            what, where = place_of_parameter(name)
            if what != "parameter":
                expected = norm(p.detach().double() - before[name])
                assert w.last[f"{what}_update/{where}/l2_norm"] == pytest.approx(expected, rel=0.05), (seed, name)
                assert w.last[f"{what}/{where}/update_ratio"] == pytest.approx(expected / norm(p), rel=0.05), name


# Whole weights.


def test_tev_is_the_spread_over_channels_summed_up_over_tokens() -> None:
    model = make(ROTARY)
    w = watch(host_for(model), probes.standard)
    model(tokens())
    row = w.read()
    for place, table in (("embedding_weight", model.token_embedding.weight), ("head_weight", model.head.weight)):
        spread = table.detach().std(dim=1, unbiased=False)
        expected = {"tev_mean": spread.mean(), "tev_std": spread.std(unbiased=False)}
        expected |= {f"tev_q{q:02d}": spread.quantile(q / 100) for q in (5, 50, 95)}
        for name, value in expected.items():
            assert row[f"{place}/model/{name}"] == pytest.approx(value.item(), rel=1e-5)


def test_spectral_norm_and_stable_rank_reach_those_of_svd() -> None:
    model = make(ROTARY)
    opt = sgd(model, 1e-3)
    w = watch(host_for(model), probes.full, optimizer=opt, every=1)
    for seed in range(30):
        loss_of(model, seed).backward()
        opt.step()
        opt.zero_grad()
    for layer, block in enumerate(model.blocks):
        q, k, v = block.attn.qkv.weight.detach().split(16)
        matrices = {"q": q, "k": k, "v": v, "proj": block.attn.proj.weight.detach()}
        matrices |= {"fc1": block.mlp.fc1.weight.detach(), "fc2": block.mlp.fc2.weight.detach()}
        for name, matrix in matrices.items():
            values = torch.linalg.svdvals(matrix)
            spectral = w.last[f"{name}_weight/layer.{layer}/spectral_norm"]
            rank = w.last[f"{name}_weight/layer.{layer}/stable_rank"]
            assert spectral == pytest.approx(values[0].item(), rel=1e-5)
            assert spectral <= values[0].item() * (1 + 1e-6)
            assert rank == pytest.approx((norm(matrix) / values[0].item()) ** 2, rel=2e-5)


def test_spectral_norm_of_a_rank_one_matrix_is_exact_at_the_first_reading() -> None:
    model = nn.Sequential(nn.Linear(3, 5)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.outer(torch.arange(1.0, 6.0), torch.tensor([1.0, -2.0, 2.0])))
    w = watch(model, probes.full)
    model(torch.zeros(1, 3, dtype=torch.float64))
    row = w.read()
    assert row["weight/0/spectral_norm"] == pytest.approx(3 * math.sqrt(55), rel=1e-6)
    assert row["weight/0/stable_rank"] == pytest.approx(1, rel=1e-6)


# Noise of the gradient.


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_gradient_variance_equals_that_of_explicit_micro_batch_gradients(config: GPTConfig, clip: bool) -> None:
    model = make(config)
    twin = copy.deepcopy(model)
    opt = sgd(model, 0.1)
    w = watch(host_for(model), probes.full, optimizer=opt, every=1)
    for step in range(2):
        seeds = [3 * step + k for k in range(3)]
        twin.load_state_dict(model.state_dict())
        named = dict(twin.named_parameters())
        each = [
            dict(zip(named, torch.autograd.grad(loss_of(twin, s) / 3, list(named.values())), strict=True))
            for s in seeds
        ]
        for seed in seeds:
            (loss_of(model, seed) / 3).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        opt.step()
        opt.zero_grad()

        def variance(names: Iterable[str], each: list[dict[str, Tensor]] = each) -> float:
            total = 0.0
            for name in names:
                mean = sum(g[name] for g in each) / 3
                total += sum(norm(g[name] - mean) ** 2 for g in each)
            return total / 2

        assert w.last["all_grad/model/variance"] == near(variance(named), 1e-8)
        assert w.last["embedding_weight_grad/model/variance"] == near(variance(["token_embedding.weight"]), 1e-8)


def test_relative_gradient_variance_does_not_depend_on_the_scale_of_the_loss() -> None:
    rows = []
    for scale in (1, 3):
        model = make()
        opt = sgd(model)
        w = watch(host_for(model), probes.full, optimizer=opt, every=1)
        for seed in range(3):
            (loss_of(model, seed) / scale).backward()
        opt.step()
        rows.append(w.last)
    plain, divided = rows
    for place in ("all_grad/model", "all_grad/layer.0", "embedding_weight_grad/model"):
        assert divided[f"{place}/variance"] == near(plain[f"{place}/variance"] / 9, 1e-8)
        assert divided[f"{place}/relative_variance"] == near(plain[f"{place}/relative_variance"], 1e-8)
    mean_square = (divided["all_grad/model/l2_norm"] / 3) ** 2
    assert divided["all_grad/model/relative_variance"] == near(divided["all_grad/model/variance"] / mean_square, 1e-8)


def test_a_single_micro_batch_has_no_gradient_variance() -> None:
    model = make()
    opt = sgd(model)
    w = watch(host_for(model), probes.full, optimizer=opt, every=1)
    loss_of(model).backward()
    opt.step()
    assert not [key for key in w.last if key.endswith("/variance")]


# Spike scores.


def naive_spike_share(values: Sequence[float], deviations: float, window: int) -> float:
    spikes = 0
    for i, value in enumerate(values):
        if not math.isfinite(value):
            spikes += 1
            continue
        past = [v for v in values[:i] if math.isfinite(v)][-window:]
        if len(past) < 2:
            continue
        mean = math.fsum(past) / len(past)
        sd = math.sqrt(math.fsum((v - mean) ** 2 for v in past) / len(past))
        away = abs(value - mean)
        spikes += away > 1e-6 * abs(mean) if sd < 1e-7 * abs(mean) else away >= deviations * sd and away > 0
    return 100 * spikes / len(values)


def naive_median_spikes(values: Sequence[float], margin: float, window: int, centred: bool) -> float:
    spikes = 0
    for i, value in enumerate(values):
        span = range(i - window // 2, i + window // 2 + 1) if centred else range(i - window + 1, i + 1)
        near_by = sorted(values[j] for j in span if 0 <= j < len(values) and math.isfinite(values[j]))
        if not math.isfinite(value):
            spikes += 1
        elif near_by:
            half = len(near_by) // 2
            median = near_by[half] if len(near_by) % 2 else (near_by[half - 1] + near_by[half]) / 2
            spikes += value > median + margin
    return 10_000 * spikes / len(values)


def noisy(length: int, extra: dict[int, float] | None = None) -> list[float]:
    source = random.Random(5)
    values = [3 + 0.05 * source.gauss(0, 1) for _ in range(length)]
    for place in range(20, length, 37):
        values[place] += source.choice((0.15, 0.4, 1.0, -0.6))
    for place, value in (extra or {}).items():
        values[place] = value
    return values


SERIES = {
    "noisy": noisy(300),
    "nan and infinities": noisy(200, {0: math.nan, 1: math.inf, 2: math.nan, 50: -math.inf, 51: math.nan}),
    "nan at the end": noisy(60, {59: math.nan}),
    "flat": [2.5] * 60,
    "flat with a step": [0.1] * 40 + [0.2] * 40,
    "flat zero with a spike": [0.0] * 40 + [1e-3] + [0.0] * 10,
    "falling": [10 * 0.99**i for i in range(200)],
    "one": [1.0],
    "only nan": [math.nan] * 5,
}  # fmt: skip


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("deviations", [3.0, 7.0, 10.0])
@pytest.mark.parametrize("window", [7, 1000])
def test_spike_share_equals_a_naive_loop(name: str, deviations: float, window: int) -> None:
    found = probes.spike_share(SERIES[name], deviations, window)
    assert found == pytest.approx(naive_spike_share(SERIES[name], deviations, window))


@pytest.mark.parametrize("size", [1e6, 1e10, 1e16, 1e30])
def test_spike_share_is_right_again_once_a_huge_finite_value_has_left_the_window(size: float) -> None:
    values = noisy(400, {30: size})
    assert probes.spike_share(values, 5.0, 50) == pytest.approx(naive_spike_share(values, 5.0, 50))


def test_spike_share_takes_values_whose_square_overflows() -> None:
    values = noisy(200, {30: 1e200})
    expected = naive_spike_share([v if v < 1e100 else 1e100 for v in values], 5.0, 50)
    assert probes.spike_share(values, 5.0, 50) == pytest.approx(expected)


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("window", [5, 6, 201])
@pytest.mark.parametrize("centred", [True, False])
def test_median_spikes_equal_a_naive_loop(name: str, window: int, centred: bool) -> None:
    found = probes.median_spikes(SERIES[name], 0.1, window, centred=centred)
    assert found == pytest.approx(naive_median_spikes(SERIES[name], 0.1, window, centred))


def test_spike_scores_of_nothing_are_nan() -> None:
    assert math.isnan(probes.spike_share([], 7.0))
    assert math.isnan(probes.median_spikes([]))


# Attention.


def explicit(scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Largest logit, weights (rows that see nothing are 0), which rows count, visible; all BHTS."""
    visible = visible.expand_as(scores)
    hidden = scores.masked_fill(~visible, -math.inf)
    weights = torch.zeros_like(scores)
    for index in itertools.product(*(range(n) for n in scores.shape[:3])):
        keys = visible[index].nonzero().flatten()
        if len(keys):
            row = scores[index][keys]
            e = (row - row.max()).exp()
            weights[index][keys] = e / e.sum()
    return hidden.amax((0, 2, 3)), weights, visible.sum(-1) > 1, visible


def mean_entropy(weights: Tensor, counts: Tensor) -> list[float]:
    found = []
    for head in range(weights.shape[1]):
        values = []
        for row in weights[:, head][counts[:, head]].tolist():
            mass = math.fsum(row)
            values.append(-math.fsum(p / mass * math.log(p / mass) for p in row if p > 0) if mass > 0 else 0.0)
        found.append(math.fsum(values) / len(values))
    return found


def turned(x: Tensor) -> Tensor:
    """Rotary positions, by complex numbers: channel i with channel i + K / 2."""
    T, K = x.shape[-2:]
    angle = torch.arange(T, dtype=torch.float64)[:, None] * 10_000.0 ** (
        -torch.arange(0, K, 2, dtype=torch.float64) / K
    )
    y = torch.complex(x[..., : K // 2], x[..., K // 2 :]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((y.real, y.imag), -1)


def queries_and_keys(model: GPT, kept: dict[str, list[Tensor]], layer: int) -> tuple[Tensor, Tensor]:
    out = kept[f"qkv_output/layer.{layer}"][0]
    B, T, _ = out.shape
    heads = model.config.num_heads
    q, k, _ = (part.view(B, T, heads, -1).transpose(1, 2) for part in out.chunk(3, -1))
    attn = model.blocks[layer].attn
    for edit in attn.query:
        q = F.layer_norm(q, q.shape[-1:], edit.weight, edit.bias, edit.eps)
    for edit in attn.key:
        k = F.layer_norm(k, k.shape[-1:], edit.weight, edit.bias, edit.eps)
    if model.rotary is not None:
        q, k = turned(q), turned(k)
    return q.detach(), k.detach()


METHODS: dict[str, Method | None] = {
    "plain": None,
    "qk_norm": methods.qk_norm,
    "soft_cap": methods.soft_cap,
    "soft_clip": methods.soft_clip,
    "qk_norm_cap": methods.qk_norm_cap,
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", METHODS)
def test_attention_of_our_gpt_equals_the_explicit_score_matrix(config: GPTConfig, name: str) -> None:
    model = make(replace(config, init_std=1.0))
    method = METHODS[name]
    if method is not None:
        method.install(host_for(model))
        model.double()
        with torch.no_grad():
            for p in (p for block in model.blocks for p in block.attn.query.parameters()):
                p.add_(torch.randn_like(p))
    capture = Capture(places_of(model))
    w = watch(host_for(model), probes.standard, exact=True)
    model(tokens())
    row = w.read()
    visible = torch.ones(8, 8, dtype=torch.bool).tril()
    for layer in range(2):
        q, k = queries_and_keys(model, capture.kept, layer)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if name in ("soft_cap", "qk_norm_cap"):
            scores = 50 * (scores / 50).tanh()
        largest, weights, counts, _ = explicit(scores, visible)
        if name == "soft_clip":
            weights = (weights * 1.06 - 0.03).clamp(0, 1)
        entropy = mean_entropy(weights, counts)
        for head in range(2):
            place = f"attention/layer.{layer}.head.{head}"
            assert row[f"{place}/max_logit"] == pytest.approx(largest[head].item(), rel=1e-6)
            assert row[f"{place}/entropy"] == pytest.approx(entropy[head], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_entropy_is_log_partition_less_the_expected_score(config: GPTConfig) -> None:
    model = make(config)
    capture = Capture(places_of(model))
    w = watch(host_for(model), probes.standard, exact=True)
    model(tokens())
    row = w.read()
    for layer in range(2):
        q, k = queries_and_keys(model, capture.kept, layer)
        scale = q.shape[-1] ** -0.5
        expected = scale * (q * F.scaled_dot_product_attention(q, k, k, is_causal=True)).sum(-1)
        scores = (scale * q @ k.mT).masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(1), -math.inf)
        entropy = (scores.logsumexp(-1) - expected)[:, :, 1:].mean((0, 2))  # the first row sees one key
        for head in range(2):
            assert row[f"attention/layer.{layer}.head.{head}/entropy"] == pytest.approx(entropy[head].item(), rel=1e-6)


def watched_family(model: Any, ids: Tensor, attention_mask: Tensor | None) -> tuple[Watch, dict[int, tuple]]:
    caught: dict[int, dict[str, Any]] = {}
    for layer, block in enumerate(model.model.layers):
        seen = caught.setdefault(layer, {})
        attn = block.self_attn
        attn.q_proj.register_forward_hook(lambda _, a, out, seen=seen: seen.__setitem__("q", out.detach().clone()))
        attn.k_proj.register_forward_hook(lambda _, a, out, seen=seen: seen.__setitem__("k", out.detach().clone()))
        attn.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.__setitem__("turn", kwargs["position_embeddings"]),
            with_kwargs=True,
        )
    w = watch(host_for(model), probes.standard, exact=True)
    model(ids, attention_mask=attention_mask)
    B, T = ids.shape
    found: dict[int, tuple] = {}
    for layer, seen in caught.items():
        cos, sin = (x.unsqueeze(1) for x in seen["turn"])
        width = model.model.layers[layer].self_attn.head_dim

        def turn(x: Tensor, cos: Tensor = cos, sin: Tensor = sin, width: int = width) -> Tensor:
            x = x.view(B, T, -1, width).transpose(1, 2)
            swapped = torch.cat((-x[..., width // 2 :], x[..., : width // 2]), -1)
            return x * cos + swapped * sin

        found[layer] = turn(seen["q"]), turn(seen["k"])
    return w, found


def grow(model: nn.Module) -> None:
    """Weights large enough for sharp attention."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                p.mul_(20)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("family", "kernel"),
    [("Llama", "sdpa"), ("Llama", "eager"), ("Mistral", "sdpa"), ("Mistral", "eager"), ("Gemma 2", "eager")],
)
def test_attention_of_grouped_windowed_and_padded_heads_equals_the_explicit_matrix(
    family: str, kernel: str, padded: bool
) -> None:
    pytest.importorskip("transformers")
    model: Any = FAMILIES[family]().double()
    model.set_attn_implementation(kernel)
    grow(model)
    ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(2))
    attended = torch.ones(2, 16, dtype=torch.long)
    if padded:
        attended[0, :5] = 0
    w, layers = watched_family(model, ids, attended if padded else None)
    row = w.read()
    positions = torch.arange(16)
    behind = positions[:, None] - positions[None, :]
    for layer, (q, k) in layers.items():
        attn = model.model.layers[layer].self_attn
        k = torch.stack([k[:, head // (q.shape[1] // k.shape[1])] for head in range(q.shape[1])], 1)
        scores = q @ k.mT * attn.scaling
        if family == "Gemma 2":
            scores = attn.attn_logit_softcapping * (scores / attn.attn_logit_softcapping).tanh()
        window = {"Mistral": 8, "Gemma 2": getattr(attn, "sliding_window", None)}.get(family) or 99
        visible = ((behind >= 0) & (behind < window))[None, None] & attended.bool()[:, None, None, :]
        largest, weights, counts, _ = explicit(scores, visible)
        entropy = mean_entropy(weights, counts)
        for head in range(q.shape[1]):
            place = f"attention/layer.{layer}.head.{head}"
            assert row[f"{place}/max_logit"] == pytest.approx(largest[head].item(), rel=1e-5), place
            assert row[f"{place}/entropy"] == pytest.approx(entropy[head], rel=1e-5, abs=1e-9), place


def test_grouped_heads_come_apart_from_one_another() -> None:
    pytest.importorskip("transformers")
    model = hugging_face("llama").double()
    grow(model)
    w = watch(host_for(model), probes.standard, exact=True)
    model(torch.arange(16)[None])
    row = w.read()
    assert len({row[f"attention/layer.0.head.{head}/max_logit"] for head in range(4)}) == 4
    assert "attention/layer.0.head.4/max_logit" not in row


# The rows themselves.

POINT = AttentionPoint(0, 4, lambda watcher: lambda: None)


def random_heads(T: int = 6, S: int = 6, groups: int = 2) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(4)
    q = torch.randn(2, 4, T, 8, generator=source, dtype=torch.float64)
    return q, torch.randn(2, groups, S, 8, generator=source, dtype=torch.float64)


def all_rows(q: Tensor, k: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return some_rows(q, k, mask, torch.arange(q.shape[2])[None])


def some_rows(q: Tensor, k: Tensor, mask: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    blocks = query_rows(POINT, q, k, mask, 0.3, rows)
    scores, visible, weights = (torch.cat(parts, 2) for parts in zip(*blocks, strict=True))
    return scores, visible, weights


def assert_rows(q: Tensor, k: Tensor, mask: Tensor | None, bias: Tensor | float, expected_visible: Tensor) -> None:
    scores, visible, weights = all_rows(q, k, mask)
    expected = 0.3 * q @ k.repeat_interleave(2, 1).mT + bias
    _, expected_weights, _, full = explicit(expected, expected_visible)
    assert torch.equal(visible, full)
    torch.testing.assert_close(scores[visible], expected.expand_as(scores)[visible])
    torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize(("T", "S"), [(6, 6), (3, 7), (1, 5)])
def test_no_mask_is_causal_and_aligned_at_the_last_key(T: int, S: int) -> None:
    q, k = random_heads(T, S)
    visible = torch.tensor([[key <= row + S - T for key in range(S)] for row in range(T)])
    assert_rows(q, k, None, 0.0, visible[None, None])


@pytest.mark.parametrize("shape", [(2, 1, 6, 6), (2, 4, 6, 6), (1, 1, 1, 6), (6, 6), (1, 6, 6)])
def test_a_boolean_mask_says_what_is_visible(shape: tuple[int, ...]) -> None:
    q, k = random_heads()
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[..., 0, :] = False  # one row that sees nothing
    assert_rows(q, k, mask, 0.0, mask)


@pytest.mark.parametrize("lowest", [-math.inf, *(torch.finfo(d).min for d in (torch.float64, torch.float32))])
def test_an_added_mask_hides_by_minus_infinity_or_a_lowest_number_and_biases_the_rest(lowest: float) -> None:
    q, k = random_heads()
    bias = torch.randn(1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    assert_rows(q, k, bias.masked_fill(hidden, lowest), bias, ~hidden[None, None])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_a_mask_of_another_dtype_hides_by_the_lowest_number_of_it(kind: torch.dtype) -> None:
    q, k = random_heads()
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)[None, None]
    mask = torch.zeros(1, 1, 6, 6, dtype=kind).masked_fill(hidden, torch.finfo(kind).min)
    assert_rows(q, k, mask, 0.0, ~hidden)


@pytest.mark.parametrize("masked", [False, True])
def test_rows_that_are_looked_at_are_rows_of_the_whole(masked: bool) -> None:
    q, k = random_heads()
    mask = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    whole = all_rows(q, k, mask)
    rows = torch.tensor([[0, 2, 5], [1, 2, 4]])
    for part, of_whole in zip(some_rows(q, k, mask, rows), whole, strict=True):
        for sequence in range(2):
            assert torch.equal(part[sequence], of_whole[sequence][:, rows[sequence]])


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
@pytest.mark.parametrize("masked", [False, True])
def test_the_scores_of_every_row_are_those_of_the_whole(
    masked: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.BLOCK, "cpu", block)
    q, k = random_heads()
    mask = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    scores, visible, _ = all_rows(q, k, mask)
    expected = scores.masked_fill(~visible, -math.inf)
    found = torch.full_like(expected, -math.inf)
    first = 0
    for piece in attention.all_scores(POINT, q, k, mask, 0.3):
        found[:, :, first : first + piece.shape[2], : piece.shape[3]] = piece
        first += piece.shape[2]
    assert first == 6
    torch.testing.assert_close(found, expected)
