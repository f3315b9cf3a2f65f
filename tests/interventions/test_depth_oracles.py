"""Low rank, depth-aware norms and inits, and gates, against plain loops and against what their papers promise."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.host import Host, Part, Site
from trimtab.intervention import ConflictError, ModelIntervention, TrainedModelError
from trimtab.interventions import AttentionGate, DepthInit, QKNorm, SigmaReparam, SmallInit, SoftCap, SoftmaxOne
from trimtab.interventions.mlra import MLRA, RankLossWarning
from trimtab.interventions.weight_gate import WeightGate
from trimtab.method import install, installed_in, method_parameters
from trimtab.optim import AdamW
from trimtab.parameters import trained_parameters
from trimtab.testing.families import FAMILIES, HEADS, WIDTH, logits_of

Weights = dict[str, Tensor]
SMALL = {"vocab_size": 13, "context": 10, "num_layers": 2, "num_heads": 2, "width": 16}
CLASSIC = GPTConfig(**SMALL)
BARE = GPTConfig(**SMALL, tied=False, norm="rms_norm", bias=False, activation="squared_relu")
DEEP = GPTConfig(vocab_size=64, num_layers=24, num_heads=2, width=32, tied=False)
EVERY_FAMILY = pytest.mark.parametrize("family", ["trimtab GPT", "Llama", "GPT-2", "GPT-NeoX"])
TWO_FAMILIES = pytest.mark.parametrize("family", ["trimtab GPT", "Llama"])
PLACES = [f"blocks.{i}.{linear}" for i in range(2) for linear in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
PIECES: dict[str, Sequence[ModelIntervention]] = {
    slug: [i for i in method.interventions if isinstance(i, ModelIntervention)]
    for slug, method in methods.catalogue().items()
}
PIECES |= {"gate_per_head": [AttentionGate(per="head")], "capped_softmax1": [SoftmaxOne(), SoftCap(cap=2.0)]}
PIECES["gate_and_softmax1"] = [AttentionGate(), SoftmaxOne()]
ORACLES = (
    "baseline", "mlra", "wesar", "scaled_embed", "deep_norm", "sub_ln", "reordered_norm", "reordered_qk_norm",
    "gated_attention", "gate_per_head", "softmax1", "capped_softmax1",
)  # fmt: skip
SETTINGS = {"default": {}, "rank 5": {"rank": 5}, "shared": {"down": "shared"}, "qk": {"projections": ("q", "k")}}
ORDERS = {"norm first": [[QKNorm()], [MLRA()]], "norm last": [[MLRA()], [QKNorm()]], "both": [[QKNorm(), MLRA()]]}
FREE = {"sub_ln": [("qkv", slice(32, 48)), ("fc1", ...)], "reordered_norm": [("proj", ...), ("fc2", ...)]}
CLAIMING = (MLRA(), SigmaReparam(), WeightGate(), SmallInit(), DepthInit())
TRAINED = [(MLRA(), "'factorise'"), (SmallInit(), "has been trained"), (DepthInit(law="sub_ln"), "has been trained")]
REFUSED = [
    *((True, [], [piece], TrainedModelError, words) for piece, words in TRAINED),
    *((False, [], [MLRA(rank=33, down=down)], ValueError, "rank 33 is more than") for down in ("separate", "shared")),
    *((False, [], pair, ConflictError, "both replace the same weight") for pair in itertools.combinations(CLAIMING, 2)),
    *((False, [a], [b], ConflictError, "same weight") for a, b in itertools.permutations(CLAIMING, 2)),
]


def build(slug: str, config: GPTConfig = CLASSIC) -> tuple[GPT, Host]:
    torch.manual_seed(0)
    model = GPT(config).double()
    install(PIECES[slug], host_for(model))
    return model, host_for(model)


def noise(shape: Sequence[int], seed: int = 3) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def family_model(family: str, *, trained: bool = False) -> nn.Module:
    model = FAMILIES[family]().double()
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data = 0.3 * noise(p.shape)
    if trained:
        train_one_step(model)
    return model


def tokens_for(model: nn.Module) -> Tensor:
    return torch.randint(model.config.vocab_size, (3, 8), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module) -> Tensor:
    return logits_of(model, tokens_for(model))


def train_one_step(model: nn.Module, **settings: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), **({"lr": 1e-2} | settings))
    F.cross_entropy(logits(model)[:, :-1].flatten(0, 1), tokens_for(model)[:, 1:].flatten()).backward()
    optimizer.step()


def snapshot(model: nn.Module) -> tuple[list[int], Weights, Tensor]:
    training, output = model.training, logits(model.eval())
    return [id(p) for p in model.train(training).parameters()], copy.deepcopy(dict(model.state_dict())), output


def assert_bitwise(model: nn.Module, before: tuple[list[int], Weights, Tensor]) -> None:
    ids, state, output = snapshot(model)
    assert (ids, list(state)) == (before[0], list(before[1]))
    assert [key for key in state if not torch.equal(state[key], before[1][key])] == []
    assert torch.equal(output, before[2])


def observe(model: nn.Module, *sites: Site, **inputs: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in sites]
    taps = [(i, tap.slot) for i, site in enumerate(sites) for tap in host_for(model).taps(site)]
    undo = [slot.watch(lambda *pair, i=i: seen[i].append(pair)) for i, slot in taps]
    model(tokens_for(model), **inputs)
    for take_away in undo:
        take_away()
    assert sum(map(len, seen)) == len(taps)
    return seen


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    for seed, (name, p) in enumerate(model.state_dict(keep_vars=True).items()):
        if isinstance(p, nn.Parameter):
            gain = p.ndim < 2 and not name.endswith("bias")
            p.copy_(noise(p.shape, seed) * (1.5 / math.sqrt(p.shape[-1]) if p.ndim > 1 else 0.3) + gain)


@torch.no_grad()
def scale(model: nn.Module, factor: float, ending: str, rows: slice = slice(None)) -> None:
    found = [p for name, p in model.state_dict(keep_vars=True).items() if name.endswith(ending)]
    assert found
    for p in found:
        p[rows] *= factor


def norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    bias = w.get(f"{name}.bias")  # an RMS norm has none
    x = x if bias is None else x - x.mean(-1, keepdim=True)
    return x / ((x**2).mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + (0 if bias is None else bias)


def linear(x: Tensor, w: Weights, name: str, slug: str) -> Tensor:
    key = f"trimtab.mlra.{name}"
    bias = w.get(f"{name}.bias", w.get(f"{key}.bias", 0.0))
    if f"{key}.up.0.weight" in w:
        return torch.cat([x @ w[f"{key}.down.{i}.weight"].T @ w[f"{key}.up.{i}.weight"].T for i in range(3)], -1) + bias
    matrix = w[f"{name}.weight"]
    if slug == "wesar":
        matrix = w[f"trimtab.weight_gate.{name}.alpha"] * matrix
    return x @ matrix.T + bias


def attention(x: Tensor, w: Weights, block: str, config: GPTConfig, slug: str) -> Tensor:
    size, place, heads = config.head_width, f"{block}.attn", []
    q, k, v = linear(x, w, f"{place}.qkv", slug).split(config.width, -1)
    if slug == "reordered_qk_norm":
        q, k = (norm(x, w, f"trimtab.qk_norm.{place}.{name}.norm", 1e-6) for x, name in ((q, "query"), (k, "key")))
    for head in range(config.num_heads):
        mine, rows = slice(head * size, (head + 1) * size), []
        for t in range(x.shape[0]):
            s = torch.stack([(q[t, mine] * k[j, mine]).sum() / math.sqrt(size) for j in range(t + 1)])
            s = 2 * torch.tanh(s / 2) if slug == "capped_softmax1" else s
            rows.append(s.exp() / (s.exp().sum() + slug.endswith("softmax1")) @ v[: t + 1, mine])
        heads.append(torch.stack(rows))
        gate = w.get(f"trimtab.attention_gate.{place}.head_out.gate.weight")
        if gate is not None:
            heads[-1] = heads[-1] / (1 + torch.exp(-x @ gate[mine if slug == "gated_attention" else [head]].T))
    y = torch.cat(heads, -1)
    y = norm(y, w, f"trimtab.inner_norm.{place}.head_out.norm", 1e-5) if slug == "sub_ln" else y
    return linear(y, w, f"{place}.proj", slug)


def mlp(x: Tensor, w: Weights, block: str, config: GPTConfig, slug: str) -> Tensor:
    y = linear(x, w, f"{block}.mlp.fc1", slug)
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2))) if config.activation == "gelu" else y.clamp_min(0) ** 2
    y = norm(y, w, f"trimtab.inner_norm.{block}.mlp.hidden", 1e-5) if slug == "sub_ln" else y
    return linear(y, w, f"{block}.mlp.fc2", slug)


def oracle(w: Weights, sequence: Tensor, config: GPTConfig, slug: str) -> Tensor:
    """A second implementation, one head and one query at a time, which knows only the names of saved weights."""
    x = w["token_embedding.weight"][sequence] + w["position_embedding.weight"][: len(sequence)]
    x = 4 * x if slug == "scaled_embed" else x  # the root of 16
    for layer, (name, branch) in itertools.product(range(2), (("attn", attention), ("mlp", mlp))):
        block = f"blocks.{layer}"
        bare = slug == "deep_norm" or slug.startswith("reordered")
        y = branch(x if bare else norm(x, w, f"{block}.{name}_norm", 1e-5), w, block, config, slug)
        if slug.startswith("reordered"):
            y = norm(y, w, f"trimtab.branch_norm.{block}.{name}_out", 1e-6)
        x = 4**0.25 * x + y if slug == "deep_norm" else x + y
        x = norm(x, w, f"trimtab.post_norm.{block}.{name}_residual", 1e-5) if slug == "deep_norm" else x
    return (x if slug == "deep_norm" else norm(x, w, "final_norm", 1e-5)) @ w["head.weight"].T


@pytest.mark.parametrize("config", [CLASSIC, BARE], ids=["classic", "bare"])
@pytest.mark.parametrize("slug", ORACLES)
def test_logits_and_all_gradients_equal_the_plain_loop(slug: str, config: GPTConfig) -> None:
    model = build(slug, config)[0].eval()
    randomise(model)
    named, tokens = model.state_dict(keep_vars=True), tokens_for(model)[:2, :6]
    copies = {id(p): p.detach().double().clone().requires_grad_() for p in named.values()}
    w = {name: copies[id(p)] for name, p in named.items()}
    found, expected = model(tokens), torch.stack([oracle(w, sequence, config, slug) for sequence in tokens])
    ((found + expected) * noise(found.shape)).sum().backward()
    tolerance = 1e-6 if slug == "wesar" else 1e-9  # its scalars are float32
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for name, p in named.items():
        if isinstance(p, nn.Parameter):
            truth = w[name].grad
            close = tolerance * (truth.abs().max().item() + 0.01)
            torch.testing.assert_close(p.grad.double(), truth, rtol=tolerance, atol=close, msg=name)
    unmarked = slug in ("baseline", "scaled_embed", "softmax1", "capped_softmax1")
    assert unmarked or any("trimtab." in name for name in w)


def factors(model: nn.Module) -> dict[str, list[tuple[Tensor, Tensor | None]]]:
    """By the name of each replaced module, U and D of its parts; D is None for a plain part."""
    w, found = model.state_dict(keep_vars=True), {}
    for path in [key.removesuffix(".up.0.weight") for key in w if key.endswith(".up.0.weight")]:
        ups, downs = ([w[k] for i in range(3) if (k := f"{path}.{x}.{i}.weight") in w] for x in ("up", "down"))
        downs = downs * len(ups) if len(downs) == 1 else [*downs, None][: len(ups)]
        found[path.removeprefix("trimtab.mlra.")] = list(zip(ups, downs, strict=True))
    return found


def parts_of(family: str, matrix: Tensor) -> Sequence[Tensor]:
    if family == "GPT-NeoX":
        return matrix.view(HEADS, 3, -1, WIDTH).unbind(1)
    return [matrix] if family == "Llama" else (matrix.T if family == "GPT-2" else matrix).chunk(3)


@EVERY_FAMILY
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_factorised_model_is_the_dense_one_with_the_products_for_weights(family: str, setting: str) -> None:
    model = family_model(family)
    dense = copy.deepcopy(model)
    install([MLRA(**SETTINGS[setting])], host_for(model))
    for p in {p for pair in itertools.chain(*factors(model).values()) for p in pair if p is not None}:
        p.data = 0.3 * noise(p.shape)
    for path, pairs in factors(model).items():
        assert all(d is None or torch.linalg.matrix_rank(u @ d) <= u.shape[1] < WIDTH for u, d in pairs)
        assert [d is None for _, d in pairs].count(True) == (setting == "qk" and family != "Llama")
        assert setting != "rank 5" or {d.shape for _, d in pairs} == {(5, WIDTH)}
        matrix = dense.get_submodule(path).weight
        for part, (u, d) in zip(parts_of(family, matrix.data), pairs, strict=True):
            part.copy_((u if d is None else u @ d).detach().view_as(part))
        torch.testing.assert_close(model.get_submodule(path).weight, matrix)
    ((logits(model) + logits(dense)) * noise(logits(model).shape)).sum().backward()
    tolerance = 2e-5 if family == "Llama" else 1e-9  # its norms work in float32
    close = functools.partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    close(logits(model), logits(dense))
    expected: dict[Tensor, Tensor] = {}
    for path, pairs in factors(model).items():
        for (u, d), grad in zip(pairs, parts_of(family, dense.get_submodule(path).weight.grad), strict=True):
            grad = grad.reshape(-1, WIDTH)
            close(u.grad, grad if d is None else grad @ d.T)
            expected |= {} if d is None else {d: expected.get(d, 0) + u.T @ grad}
    for d, grad in expected.items():
        close(d.grad, grad)
    others = dict(dense.named_parameters())
    for name, p in model.named_parameters():  # the embedding's gradient is that of the input
        if name in others:
            close(p.grad, others[name].grad)


@EVERY_FAMILY
@pytest.mark.parametrize("down", ["separate", "shared"])
def test_the_default_rank_spends_no_more_parameters_and_one_more_rank_would(family: str, down: str) -> None:
    model, plain = FAMILIES[family](), FAMILIES[family]()
    install([MLRA(down=down)], host_for(model))
    fewer = sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in model.parameters())
    ranks = sorted({id(d): d.shape[0] for _, d in itertools.chain(*factors(model).values())}.values())
    grouped, square = ([10] * 4 + [16] * 2, [16] * 6) if down == "separate" else ([21] * 2, [24] * 2)
    assert ranks == (grouped if family == "Llama" else square)  # Llama's keys and values are 16 x 32
    assert 0 <= fewer < (192 if family == "Llama" else 1)


@pytest.mark.parametrize(("init", "expected"), [("gpt2", 0.02**2 * math.sqrt(128)), ("variance_matched", 0.05)])
def test_the_product_starts_at_the_spread_that_its_init_names(init: str, expected: float) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=8, num_layers=1, width=256, init_std=0.05))
    install([MLRA(init=init)], host_for(model))
    for u, d in itertools.chain(*factors(model).values()):
        assert (u @ d).std().item() == pytest.approx(expected, rel=0.04)


@EVERY_FAMILY
def test_factorising_gives_the_best_approximation_of_its_rank_and_says_what_is_lost(family: str) -> None:
    model, kept = family_model(family, trained=True), []
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.warns(RankLossWarning) as caught:
        install([MLRA(rank=6, trained="factorise")], host_for(model))
    for path, pairs in factors(model).items():
        for (u, d), matrix in zip(pairs, parts_of(family, weights[f"{path}.weight"]), strict=True):
            left, values, right = np.linalg.svd(matrix.reshape(-1, WIDTH).numpy(), full_matrices=False)
            best = (left[:, :6] * values[:6]) @ right[:6]
            np.testing.assert_allclose((u @ d).detach().numpy(), best, rtol=0, atol=1e-10)
            kept.append(100 * (values[:6] ** 2).sum() / (values**2).sum())
    said = [float(number) for number in re.findall(r"([\d.]+)%", str(caught.pop().message))]
    assert said == pytest.approx([min(kept), max(kept)], abs=0.0501)


@EVERY_FAMILY
@pytest.mark.parametrize("piece", [MLRA(), MLRA(down="shared", projections=("q", "v")), WeightGate()], ids=str)
def test_factors_and_gates_come_out_bitwise_at_first_and_merge_later(family: str, piece: ModelIntervention) -> None:
    model = family_model(family)
    before = snapshot(model)
    install([piece], host_for(model))[0].remove()
    assert_bitwise(model, before)
    (one,) = install([piece], host_for(model))
    train_one_step(model)
    trained = logits(model)
    one.merge()
    assert list(model.state_dict()) == list(before[1])
    assert [id(p) for p in model.parameters()] == before[0]
    torch.testing.assert_close(logits(model), trained, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family", ["GPT-NeoX", "Llama"])
@pytest.mark.parametrize("slug", ["mlra", "wesar", "sigma_reparam_unit", "gated_attention", "sub_ln"])
def test_everything_a_method_adds_lies_on_the_device_of_the_model(slug: str, family: str) -> None:
    model = FAMILIES[family]().to("meta")
    install(PIECES[slug], host_for(model))
    assert [name for name, x in (*model.named_parameters(), *model.named_buffers()) if not x.is_meta] == []


def largest_score(model: nn.Module) -> float:
    queries, keys = observe(model, Site.QUERY_ROTATED, Site.KEY_ROTATED)
    pairs = [(q, k.repeat_interleave(HEADS // k.shape[1], 1)) for (_, q), (_, k) in zip(queries, keys, strict=True)]
    return max((q @ k.mT).abs().max().item() for q, k in pairs) / math.sqrt(WIDTH // HEADS)


@pytest.mark.parametrize("leave", ["remove", "merge"])
@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX"])
@pytest.mark.parametrize("order", ORDERS)
def test_qk_norm_bounds_the_scores_of_factors_and_outlives_them(order: str, family: str, leave: str) -> None:
    model, bound = family_model(family), math.sqrt(WIDTH // HEADS) * (1 + 1e-5)
    receipts = {one.slug: one for pieces in ORDERS[order] for one in install(pieces, host_for(model))}
    if leave == "remove":
        receipts["mlra"].remove()
    plain = "query_key_value.weight" if family == "GPT-NeoX" else "q_proj.weight"
    scale(model, 1e4, plain if leave == "remove" else "up.0.weight")
    assert 0.5 < largest_score(model) <= bound
    if leave == "merge":
        receipts["mlra"].merge()
        assert 0.5 < largest_score(model) <= bound
    receipts["qk_norm"].remove()
    assert largest_score(model) > bound


@TWO_FAMILIES
@pytest.mark.parametrize("slugs", [("gated_attention", "softmax1"), ("qk_norm", "mlra")], ids=str)
def test_a_copy_is_independent_and_no_tensor_outlives_a_pass(family: str, slugs: Sequence[str]) -> None:
    model = family_model(family)
    plain = logits(model)
    for slug in slugs:
        install(PIECES[slug], host_for(model))
    before, twin = snapshot(model), copy.deepcopy(model)
    assert torch.equal(logits(twin), before[2])
    kept = {name for m in (*model.modules(), *twin.modules()) for name, x in vars(m).items() if isinstance(x, Tensor)}
    assert kept == set()
    scale(twin, 3, ".weight")
    assert not torch.allclose(logits(twin), before[2])
    assert_bitwise(model, before)
    twin = copy.deepcopy(model)
    for one in reversed(installed_in(twin)):
        one.remove()
    assert torch.equal(logits(twin), plain)
    assert_bitwise(model, before)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: str([[p.slug() for p in some] for some in case[1:3]]))
@TWO_FAMILIES
def test_a_refusal_names_its_reason_and_changes_no_bit(family: str, case: tuple) -> None:
    trained, first, pieces, error, words = case
    model = family_model(family, trained=trained)
    receipts = install(first, host_for(model))
    before = snapshot(model)
    with pytest.raises(error, match=words):
        install(pieces, host_for(model))
    assert installed_in(model) == receipts
    assert_bitwise(model, before)


@pytest.mark.parametrize("slug", PIECES)
def test_matrices_of_linear_layers_decay_and_gains_and_scalars_do_not(slug: str) -> None:
    model, _ = build(slug)
    optimizer = AdamW().build(trained_parameters(model), 1e-3)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        assert decay[id(p)] == (0.1 if p.ndim >= 2 else 0.0), name
    assert not any(p.ndim >= 2 for p in method_parameters(model))


def still_step(model: nn.Module) -> None:
    """An optimizer step that changes no weight; state that advances with the steps does."""
    torch.optim.SGD(model.parameters(), lr=0.0).step()


@pytest.mark.parametrize("slug", ["sigma_reparam_unit", "sigma_reparam_normless"])
def test_every_spectral_norm_is_one_after_enough_steps(slug: str) -> None:
    model, _ = build(slug)
    for place in PLACES:  # far from the matrix that power iteration began with
        stored = model.state_dict()[f"{place}.weight"]
        stored.copy_(noise(stored.shape))
    spectra = []
    for passes in (0, 100):
        for _ in range(passes):
            still_step(model)
            logits(model.train())
        spectra.append([torch.linalg.matrix_norm(m.weight, 2).item() for m in map(model.eval().get_submodule, PLACES)])
    assert max(spectra[0]) > 1.05
    assert spectra[1] == pytest.approx([1.0] * len(PLACES), rel=2e-3)
    assert any(isinstance(m, nn.LayerNorm) for m in model.modules()) is (slug == "sigma_reparam_unit")


@pytest.mark.parametrize("slug", ["sigma_reparam_unit", "gate_and_softmax1", "compiled gate_and_softmax1"])
def test_checkpoints_and_one_compiled_graph_change_no_output_gradient_or_buffer(slug: str) -> None:
    compiled, slug = slug.startswith("compiled"), slug.removeprefix("compiled ")
    model, _ = build(slug, dataclasses.replace(CLASSIC, num_layers=1))
    twin = copy.deepcopy(model)
    run = torch.compile(twin, fullgraph=True, backend="aot_eager") if compiled else twin
    if not compiled:
        twin.blocks[0].forward = functools.partial(checkpoint, twin.blocks[0].forward, use_reentrant=False)
    for _ in range(3):
        still_step(model)
        still_step(twin)
        expected, found = model(tokens_for(model)), run(tokens_for(model))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        (expected.square() + found.square()).sum().backward()
    for (name, p), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, p.grad, rtol=1e-9, atol=1e-12, msg=name)
    same = [torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True)]
    assert same == [True] * (8 if slug == "sigma_reparam_unit" else 0)


@TWO_FAMILIES
def test_asking_what_a_model_has_moves_no_power_iteration(family: str) -> None:
    model = FAMILIES[family]().train()
    install([SigmaReparam()], host_for(model))
    before = snapshot(model)
    method_parameters(model)
    host_for(model).find_taps()
    assert_bitwise(model, before)


@pytest.mark.parametrize("slug", ["deep_norm", "sub_ln", "scaled_embed"])
def test_initial_weights_have_the_spread_that_depth_and_width_ask_for(slug: str) -> None:
    host, gain = build(slug, DEEP)[1], 1.968 if slug == "sub_ln" else 1 / 3.722
    parts = (Part.EMBEDDING, Part.HEAD, Part.Q, Part.K, Part.V, Part.FC1, Part.PROJ, Part.FC2)
    square, tall, small = math.sqrt(2 / (32 + 32)), math.sqrt(2 / (32 + 128)), math.sqrt(2 / (5 * 32))
    stds = [0.02, 0.02, square, square, gain * square, gain * tall, gain * square, gain * tall]
    stds = [small] * 6 + [small * math.sqrt(1 / (2 * 24))] * 2 if slug == "scaled_embed" else stds
    for part, std in zip(parts, stds, strict=True):
        drawn = torch.cat([view.weight.flatten() for view in host.parts(part)])
        assert drawn.std().item() == pytest.approx(std, rel=0.04), part


def test_the_shortcut_of_deep_norm_weighs_its_root_of_depth_and_leaves_unit_rows() -> None:
    model, _ = build("deep_norm", DEEP)
    *branches, sums = observe(model, Site.ATTN_OUT, Site.MLP_OUT, Site.RESIDUAL)
    for before, after in itertools.chain(*branches):
        assert (before.norm() / after.norm()).item() == pytest.approx(2.632, abs=5e-4)
    for _, rows in sums:
        assert rows.mean(-1).abs().max() < 1e-12
        torch.testing.assert_close(rows.var(-1, correction=0), torch.ones(3, 8).double(), rtol=1e-2, atol=0)
    assert len(sums) == 48


@pytest.mark.parametrize("slug", FREE)
def test_the_scale_of_a_matrix_before_a_norm_has_no_effect(slug: str) -> None:
    for name, rows in FREE[slug]:
        model, plain = build(slug, BARE)[0], build("baseline", BARE)[0]
        for one in (model, plain):
            randomise(one)
        naked = logits(plain)
        scale(plain, 7, f"{name}.weight", rows)
        assert not torch.allclose(logits(plain), naked, atol=0.1)
        scale(model, 1e4, f"{name}.weight", rows)  # so that eps is nothing
        first = logits(model)
        scale(model, 7, f"{name}.weight", rows)
        torch.testing.assert_close(logits(model), first, rtol=1e-5, atol=1e-5)


@EVERY_FAMILY
@pytest.mark.parametrize("slug", ["reordered_norm", "reordered_qk_norm"])
def test_every_branch_adds_the_root_of_the_width_under_a_reordered_norm(slug: str, family: str) -> None:
    model = family_model(family)
    install(PIECES[slug], host_for(model))
    for view in itertools.chain(*map(host_for(model).parts, (Part.PROJ, Part.FC2))):
        view.write(view.weight.detach() * 1e4)
    for _, after in itertools.chain(*observe(model, Site.ATTN_OUT, Site.MLP_OUT)):
        torch.testing.assert_close(after.norm(dim=-1), torch.full((3, 8), math.sqrt(WIDTH)).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("width", [32, 128, 256])
def test_the_stream_starts_at_one_spread_whatever_the_width_under_scaled_embed(width: int) -> None:
    model, _ = build("scaled_embed", GPTConfig(num_heads=2, width=width, positions="rotary"))
    ((_, start),) = observe(model, Site.EMBEDDING)[0]
    assert start.std().item() == pytest.approx(math.sqrt(2 / 5), rel=0.06)


@EVERY_FAMILY
@pytest.mark.parametrize("piece", [SmallInit(), DepthInit()], ids=str)
def test_the_same_seed_draws_the_same_weights_and_a_tied_head_stays_tied(family: str, piece: ModelIntervention) -> None:
    states = []
    for seed in (5, 5, 6):
        model = family_model(family)
        plain = snapshot(model)
        embedding, head = (host_for(model).parts(part)[0].module for part in (Part.EMBEDDING, Part.HEAD))
        torch.manual_seed(seed)
        (one,) = install([piece], host_for(model))
        states.append(snapshot(model)[1])
        assert (embedding.weight is head.weight) is (family in ("trimtab GPT", "GPT-2"))
        one.remove()
        assert_bitwise(model, plain)
    drawn = [key for key in plain[1] if not torch.equal(states[0][key], plain[1][key])]
    assert len(drawn) >= 8
    assert [key for key in plain[1] if not torch.equal(states[0][key], states[1][key])] == []
    assert [key for key in drawn if torch.equal(states[0][key], states[2][key])] == []


@pytest.mark.parametrize("family", ["trimtab GPT", "Llama", "GPT-2"])
@pytest.mark.parametrize("per", ["element", "head"])
def test_a_gate_only_shrinks_and_halves_exactly_at_zero(per: str, family: str) -> None:
    model = family_model(family)
    plain = set(model.parameters())
    install([AttentionGate(per=per)], host_for(model))
    assert sum(p.numel() for p in model.parameters() if p not in plain) == 2 * WIDTH * (
        WIDTH if per == "element" else HEADS
    )
    scale(model, 100, "gate.weight")
    for before, after in observe(model, Site.HEAD_OUT)[0]:
        assert (after.abs() <= before.abs()).all()
        assert (after / before).min() < 0.2 < 0.8 < (after / before).max()
    scale(model, 0, "gate.weight")
    assert all(torch.equal(after, before / 2) for before, after in observe(model, Site.HEAD_OUT)[0])


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("shift", [-3, 0, 3])
def test_softmax1_is_the_softmax_with_an_empty_key_dropped(size: float, shift: float) -> None:
    edit = SoftmaxOne().edit(build("baseline")[1].taps(Site.WEIGHTS)[0])
    s = (size * (noise((2, 2, 6, 6)) + shift)).requires_grad_()
    masked = s.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -math.inf)
    edit.hear(s)
    both = edit(masked.softmax(-1)), F.pad(masked, (0, 1)).softmax(-1)[..., :-1]  # with an empty key
    torch.testing.assert_close(*both, rtol=1e-9, atol=1e-12)
    grads = [torch.autograd.grad((w * noise(w.shape, 4)).sum(), s, retain_graph=True)[0] for w in both]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)
    assert both[0].sum(-1).max() <= 1 + 1e-12
    assert size < 1e4 or shift >= 0 or both[0].sum(-1).mean() < 0.1


@pytest.mark.parametrize("order", ["alone", "before the cap", "after the cap"])
@EVERY_FAMILY
def test_heads_attend_by_softmax1_of_the_capped_scores(family: str, order: str) -> None:
    model = family_model(family)
    host, pieces = host_for(model), [SoftmaxOne(), SoftCap(cap=0.5)]
    for view in (*host.parts(Part.Q), *host.parts(Part.K)):
        view.write(view.weight.detach() * 20)
    for piece in {"alone": pieces[:1], "before the cap": pieces, "after the cap": pieces[::-1]}[order]:
        install([piece], host)
    seen = observe(model, Site.SCORES, Site.WEIGHTS, Site.VALUE, Site.HEAD_OUT)
    tolerance = 1e-12 if family == "trimtab GPT" else 1e-6
    for (s, _), (_, w), (v, _), (out, _) in zip(*seen, strict=True):
        assert s.abs().max() > 1
        capped = s if order == "alone" else 0.5 * torch.tanh(s / 0.5)
        expected = F.pad(capped.masked_fill(torch.ones(8, 8).triu(1).bool(), -math.inf), (0, 1)).softmax(-1)[..., :-1]
        torch.testing.assert_close(w, expected, rtol=tolerance, atol=tolerance)
        heads = w @ v.repeat_interleave(HEADS // v.shape[1], 1)
        torch.testing.assert_close(out, heads, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", ["Llama", "GPT-2"])
def test_rows_that_see_nothing_stay_zero_and_their_gradients_finite_under_softmax1(family: str) -> None:
    model = family_model(family)
    install([SoftmaxOne()], host_for(model))
    visible = torch.ones(3, 8, dtype=torch.long)
    visible[0, :3] = 0  # padding on the left: three queries have no key
    for _, w in observe(model, Site.WEIGHTS, attention_mask=visible)[0]:
        assert (w[0, :, :3] == 0).all()
        assert min(w[0, :, 3:].sum(-1).min(), w[1:].sum(-1).min()) > 0.3
    output = model(tokens_for(model), attention_mask=visible).logits
    output[:, 3:].square().sum().backward()
    assert output.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@EVERY_FAMILY
def test_a_weight_gate_keeps_the_function_and_lets_adam_move_every_matrix_by_one_share(family: str) -> None:
    model, mark = family_model(family), "trimtab.weight_gate."
    _, before, output = snapshot(model)
    install([WeightGate(std=0.01)], host_for(model))
    torch.testing.assert_close(logits(model), output, rtol=1e-5, atol=1e-5)
    w = model.state_dict(keep_vars=True)
    places = [
        name.removeprefix(mark).removesuffix(".alpha")
        for name in w
        if name.startswith(mark) and name.endswith(".alpha")
    ]
    first = {place: w[f"{place}.weight"].detach().clone() for place in places}
    assert len(places) == (14 if family == "Llama" else 8)
    for place in places:
        target = before[f"{place}.weight"].std(correction=0).item()
        assert first[place].std(correction=0).item() == pytest.approx(0.01, rel=1e-5)
        assert w[f"{mark}{place}.alpha"].item() == pytest.approx(target / 0.01, rel=1e-5)
    train_one_step(model, lr=1e-4, eps=1e-20, weight_decay=0)
    for place in places:
        p = w[f"{place}.weight"]
        assert (p.grad != 0).double().mean() > 0.99, place
        assert ((p - first[place]).norm() / first[place].norm()).item() == pytest.approx(1e-4 / 0.01, rel=0.03), place
