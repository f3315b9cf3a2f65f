"""Every method against a second implementation, in float64 and in plain loops, and against what its paper promises."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.host import Host, Site
from trimtab.interventions import SoftClip

Weights = dict[str, Tensor]
Trace = list[tuple[Tensor, Tensor]]

SLUGS = (
    "baseline", "sigma_reparam", "soft_temp", "soft_cap", "soft_clip",
    "layer_scale", "qk_norm", "qk_norm_cap", "qkv_norm", "qk_fc_norm",
)  # fmt: skip
NORMALISES_QK = ("qk_norm", "qk_norm_cap", "qkv_norm", "qk_fc_norm")
CAPS = ("soft_cap", "qk_norm_cap")
CLASSIC = GPTConfig(vocab_size=13, context=10, num_layers=2, num_heads=2, width=16)
MODERN = GPTConfig(
    vocab_size=13, context=10, num_layers=2, num_heads=2, width=16,
    positions="rotary", rotary_share=0.5, tied=False, norm="rms_norm", bias=False, activation="squared_relu",
)  # fmt: skip
# MODERN but for the rotation, whose tables the library keeps in float32 and which therefore needs a loose tolerance.
UNROTATED = dataclasses.replace(MODERN, positions="learned")
CONVENTIONS = pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])
# Fused attention builds no scores for a watcher to see.
BUILDING_SCORES = [dataclasses.replace(config, attention="explicit") for config in (CLASSIC, MODERN)]
EXPLICIT = pytest.mark.parametrize("config", BUILDING_SCORES, ids=["classic", "modern"])


# The second implementation. It knows the library only by the names of its weights.


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gain + bias


def model_norm(x: Tensor, w: Weights, name: str, config: GPTConfig) -> Tensor:
    if config.norm == "layer_norm":
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]


def method_norm(x: Tensor, w: Weights, intervention: str, place: str) -> Tensor:
    name = f"trimtab.{intervention}.{place}"
    return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def linear(x: Tensor, w: Weights, name: str, slug: str) -> Tensor:
    matrix = w[f"{name}.weight"]
    if slug == "sigma_reparam":
        gamma = w[f"trimtab.sigma_reparam.{name}.gamma"]
        u, v = (w[f"trimtab.sigma_reparam.{name}.{vector}"].detach() for vector in "uv")
        matrix = gamma / (v @ matrix @ u) * matrix
    y = x @ matrix.T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def rotate(x: Tensor, width: int) -> Tensor:
    rows = []
    for t in range(x.shape[1]):
        row = list(x[:, t].unbind(-1))
        for i in range(width // 2):
            j, angle = i + width // 2, t * 10_000.0 ** (-2 * i / width)
            a, b = row[i], row[j]
            row[i], row[j] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, slug: str, trace: Trace) -> Tensor:
    # One query at a time over the keys up to it, so that no mask is needed.
    rows = []
    for t in range(q.shape[1]):
        s = raw = (k[:, : t + 1] @ q[:, t, :, None])[..., 0] / math.sqrt(q.shape[-1])
        if slug == "soft_temp":
            s = 0.5 * s
        if slug in CAPS:
            s = 50 * torch.tanh(s / 50)
        a = torch.exp(s - s.max(-1, keepdim=True).values)
        a = a / a.sum(-1, keepdim=True)
        if slug == "soft_clip":
            a = (1.06 * a - 0.03).clip(0, 1)
        trace.append((raw.detach(), a.detach()))
        rows.append((a[..., None] * v[:, : t + 1]).sum(1))
    return torch.stack(rows, 1)


def attention(x: Tensor, w: Weights, block: str, config: GPTConfig, slug: str, trace: Trace) -> Tensor:
    d, h = config.width, config.width // config.num_heads
    qkv = linear(x, w, f"{block}.attn.qkv", slug)
    heads = []
    for head in range(config.num_heads):
        q, k, v = (qkv[..., part * d + head * h : part * d + (head + 1) * h] for part in range(3))
        if slug in NORMALISES_QK:
            q = method_norm(q, w, "qk_norm", f"{block}.attn.query")
            k = method_norm(k, w, "qk_norm", f"{block}.attn.key")
        if slug == "qkv_norm":
            v = method_norm(v, w, "v_norm", f"{block}.attn.value")
        if config.positions == "rotary":
            width = int(h * config.rotary_share)
            q, k = rotate(q, width), rotate(k, width)
        heads.append(attend(q, k, v, slug, trace))
    return linear(torch.cat(heads, -1), w, f"{block}.attn.proj", slug)


def mlp(x: Tensor, w: Weights, block: str, config: GPTConfig, slug: str) -> Tensor:
    hidden = linear(x, w, f"{block}.mlp.fc1", slug)
    if config.activation == "gelu":
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    else:
        hidden = torch.where(hidden > 0, hidden, 0) ** 2
    return linear(hidden, w, f"{block}.mlp.fc2", slug)


def branch_end(y: Tensor, w: Weights, place: str, slug: str) -> Tensor:
    if slug == "layer_scale":
        return y * w[f"trimtab.layer_scale.{place}.gain"]
    return method_norm(y, w, "branch_norm", place) if slug == "qk_fc_norm" else y


def oracle(w: Weights, tokens: Tensor, config: GPTConfig, slug: str) -> tuple[Tensor, Trace]:
    """The logits, and for every query the raw scores and the weights that it attended with."""
    trace: Trace = []
    x = w["token_embedding.weight"][tokens]
    if config.positions == "learned":
        x = x + w["position_embedding.weight"][torch.arange(tokens.shape[1])]
    for layer in range(config.num_layers):
        block = f"blocks.{layer}"
        y = x if slug == "qkv_norm" else model_norm(x, w, f"{block}.attn_norm", config)
        x = x + branch_end(attention(y, w, block, config, slug, trace), w, f"{block}.attn_out", slug)
        y = model_norm(x, w, f"{block}.mlp_norm", config)
        x = x + branch_end(mlp(y, w, block, config, slug), w, f"{block}.mlp_out", slug)
    return model_norm(x, w, "final_norm", config) @ w["head.weight"].T, trace


# Models to compare it with.


def build(config: GPTConfig, slug: str = "baseline") -> tuple[GPT, Host]:
    torch.manual_seed(0)
    model = GPT(config).double()
    host = host_for(model)
    methods.catalogue()[slug].install(host)
    return model, host


def public(model: GPT) -> Weights:
    return model.state_dict(keep_vars=True)


def some_tokens(config: GPTConfig) -> Tensor:
    return torch.randint(config.vocab_size, (3, 8), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def randomise(model: GPT) -> None:
    """Leave no weight at a special value, one head with scores of a hundred or so, and one with scores near 1."""
    config, generator = model.config, torch.Generator().manual_seed(2)
    for name, p in public(model).items():
        if not isinstance(p, torch.nn.Parameter):
            continue
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if name.endswith("gamma"):
            p.copy_(3 + noise.abs())
        elif name.endswith(("query.weight", "key.weight")):
            p.copy_(5 + noise)
        elif p.ndim == 2:
            p.copy_(noise / math.sqrt(p.shape[1]))
            if name.endswith("qkv.weight"):
                p[: config.head_width] *= 40
        else:
            p.copy_(0.3 * noise + (0 if name.endswith("bias") else 1))
        if name.endswith("qkv.gamma"):
            p.mul_(-5)


def leaves(named: Weights) -> Weights:
    """Float64 copies, with one copy for a matrix that has two names."""
    by_id = {id(p): p.detach().double().clone().requires_grad_() for p in named.values()}
    return {name: by_id[id(p)] for name, p in named.items()}


def observe(model: GPT, host: Host, *sites: Site) -> Trace:
    """What passes the sites in one forward, before and after the edits, site by site and layer by layer."""
    seen: dict[Site, Trace] = {site: [] for site in sites}
    for site in sites:
        for tap in host.taps(site):
            tap.slot.watchers[:] = [lambda before, after, site=site: seen[site].append((before, after))]
    model(some_tokens(model.config))
    assert all(len(seen[site]) == len(host.taps(site)) for site in sites)
    return [pair for pairs in seen.values() for pair in pairs]


@torch.no_grad()
def scale(model: GPT, factor: float, pick: Callable[[str], bool], rows: slice = slice(None)) -> None:
    for name, p in public(model).items():
        if pick(name):
            p[rows] *= factor


def is_qkv(name: str) -> bool:
    return name.endswith("qkv.weight")


def causal(T: int) -> Tensor:
    return torch.ones(T, T, dtype=torch.bool).tril()


def masked_softmax(s: Tensor) -> Tensor:
    return s.masked_fill(~causal(s.shape[-1]), -math.inf).softmax(-1)


# Outputs and gradients.


@pytest.mark.parametrize("config", [CLASSIC, MODERN, UNROTATED], ids=["classic", "modern", "unrotated"])
@pytest.mark.parametrize("slug", SLUGS)
def test_logits_and_all_gradients_equal_the_second_implementation(slug: str, config: GPTConfig) -> None:
    model, _ = build(config, slug)
    randomise(model)
    model.eval()
    tokens, named = some_tokens(config), public(model)
    w = leaves(named)
    logits = model(tokens)
    expected, trace = oracle(w, tokens, config, slug)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()

    tolerance = 1e-4 if config.positions == "rotary" else 1e-5 if slug == "sigma_reparam" else 1e-9
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    for name, p in named.items():
        if isinstance(p, torch.nn.Parameter):
            assert p.grad is not None, name
            truth = w[name].grad
            assert truth is not None, name
            atol = tolerance * (truth.abs().max().item() + 0.01)
            torch.testing.assert_close(
                p.grad.double(), truth, rtol=tolerance, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )

    # Without these a method that does nothing could pass.
    ones = {f"blocks.{i}.attn_norm.weight": torch.ones(config.width) for i in range(config.num_layers)}
    zeros = {f"blocks.{i}.attn_norm.bias": torch.zeros(config.width) for i in range(config.num_layers)}
    plain, _ = oracle(ones | zeros | w, tokens, config, "baseline")
    assert slug == "baseline" or (plain - expected).abs().max() > 0.01
    if slug in CAPS:
        assert max(scores.abs().max() for scores, _ in trace) > 60
    if slug == "soft_clip":
        every = torch.cat([weights.flatten() for _, weights in trace])
        assert min((every == 0).sum(), (every == 1).sum(), ((every > 0) & (every < 1)).sum()) > 20


# What the papers promise.


@EXPLICIT
def test_scores_never_exceed_sqrt_head_width_under_qk_norm(config: GPTConfig) -> None:
    model, host = build(config, "qk_norm")
    scale(model, 1000, is_qkv)
    seen = observe(model, host, Site.SCORES)
    bound = math.sqrt(config.head_width)
    largest = max(scores.abs().max().item() for scores, _ in seen)
    assert 0.8 * bound < largest <= bound * (1 + 1e-6)


@EXPLICIT
@pytest.mark.parametrize("part", [0, 1], ids=["query", "key"])
def test_scores_do_not_depend_on_the_size_of_the_query_and_key_matrices_under_qk_norm(
    part: int, config: GPTConfig
) -> None:
    model, host = build(config, "qk_norm")
    scale(model, 1000, is_qkv)
    original = observe(model, host, Site.SCORES)
    scale(model, 7, is_qkv, slice(part * config.width, (part + 1) * config.width))
    for (first, _), (second, _) in zip(original, observe(model, host, Site.SCORES), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@EXPLICIT
@pytest.mark.parametrize("slug", CAPS)
def test_scores_never_exceed_fifty_under_a_cap(slug: str, config: GPTConfig) -> None:
    model, host = build(config, slug)
    randomise(model)
    seen = observe(model, host, Site.SCORES)
    assert max(before.abs().max() for before, _ in seen) > 60
    assert max(after.abs().max() for _, after in seen) <= 50


def entropy(weights: Tensor) -> Tensor:
    return -torch.special.xlogy(weights, weights).sum(-1)


@EXPLICIT
def test_every_row_of_attention_has_more_entropy_at_the_soft_temperature(config: GPTConfig) -> None:
    model, host = build(config, "soft_temp")
    scale(model, 5, is_qkv)
    seen = observe(model, host, Site.SCORES)
    for before, after in seen:
        # The first query has one key, hence no entropy to gain.
        gain = (entropy(masked_softmax(after)) - entropy(masked_softmax(before)))[..., 1:]
        assert gain.min() >= 0
        assert gain.max() > 0.01


def test_soft_clip_with_alpha_clips_at_a_share_of_the_average_weight() -> None:
    for keys in (8, 64):
        edit = SoftClip(alpha=12.0, high=1.0).edit(cast(Any, None))
        weights = torch.linspace(0, 1, 101, dtype=torch.float64)[None, None, :, None].expand(1, 1, 101, keys)
        low = -12.0 / keys
        assert torch.equal(edit(weights), (weights * (1 - low) + low).clamp(0, 1))
    with pytest.raises(ValueError, match="alpha must not be negative"):
        SoftClip(alpha=-1.0)


@EXPLICIT
def test_soft_clip_reaches_exact_zeros_and_ones_and_keeps_masked_keys_at_zero(config: GPTConfig) -> None:
    model, host = build(config, "soft_clip")
    randomise(model)
    seen = observe(model, host, Site.WEIGHTS)
    for before, after in seen:
        visible = causal(before.shape[-1]).expand_as(before)
        small, large = visible & (before < 0.03 / 1.06 - 1e-6), before > 0.9717
        assert small.any()
        assert large.any()
        assert (after[~visible] == 0).all()
        assert (after[small] == 0).all()
        assert (after[large] == 1).all()
        between = visible & (before > 0.03 / 1.06 + 1e-6) & (before < 1.03 / 1.06 - 1e-6)
        assert ((after[between] > 0) & (after[between] < 1)).all()


def test_a_layer_scale_of_one_changes_no_bit() -> None:
    plain, _ = build(CLASSIC)
    model, _ = build(CLASSIC, "layer_scale")
    with torch.no_grad():
        for name, p in public(model).items():
            if name.endswith("gain"):
                assert (p - 1e-5).abs().max() < 1e-12
                p.fill_(1)
    assert torch.equal(model(some_tokens(CLASSIC)), plain(some_tokens(CLASSIC)))


def test_a_layer_scale_of_zero_makes_every_block_the_identity() -> None:
    model, host = build(CLASSIC, "layer_scale")
    scale(model, 0, lambda name: name.endswith("gain"))
    (_, embedded), *residual = observe(model, host, Site.EMBEDDING, Site.RESIDUAL)
    assert len(residual) == 2 * CLASSIC.num_layers
    assert all(torch.equal(after, embedded) for _, after in residual)


@EXPLICIT
def test_head_outputs_never_exceed_sqrt_head_width_under_qkv_norm(config: GPTConfig) -> None:
    model, host = build(config, "qkv_norm")
    scale(model, 1000, is_qkv)
    seen = observe(model, host, Site.HEAD_OUT)
    bound = math.sqrt(config.head_width)
    largest = max(out.norm(dim=-1).max().item() for out, _ in seen)
    # The first query attends to itself alone, so the bound is reached.
    assert 0.99 * bound < largest <= bound * (1 + 1e-9)


@EXPLICIT
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
def test_attention_does_not_depend_on_the_size_of_its_input_matrices_under_qkv_norm(
    part: int, config: GPTConfig
) -> None:
    model, host = build(config, "qkv_norm")
    scale(model, 10_000, is_qkv)
    original = observe(model, host, Site.ATTN_OUT)
    scale(model, 7, is_qkv, slice(part * config.width, (part + 1) * config.width))
    for (_, first), (_, second) in zip(original, observe(model, host, Site.ATTN_OUT), strict=True):
        assert (first - second).norm() < 1e-5 * first.norm()


@EXPLICIT
def test_every_branch_adds_norm_sqrt_width_to_every_token_under_qk_fc_norm(config: GPTConfig) -> None:
    model, host = build(config, "qk_fc_norm")
    scale(model, 1000, lambda name: name.endswith(("proj.weight", "fc2.weight")))
    stages = [after for _, after in observe(model, host, Site.EMBEDDING, Site.RESIDUAL)]
    assert len(stages) == 1 + 2 * config.num_layers
    for before, after in itertools.pairwise(stages):
        norms = (after - before).norm(dim=-1)
        torch.testing.assert_close(norms, torch.full_like(norms, math.sqrt(config.width)), rtol=1e-3, atol=0)


REPARAMETRISED = [f"blocks.{i}.{part}" for i in range(2) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


def test_sigma_reparam_leaves_the_output_as_it_was_at_install() -> None:
    plain, _ = build(CLASSIC)
    randomise(plain)
    model = copy.deepcopy(plain)
    methods.catalogue()["sigma_reparam"].install(host_for(model))
    torch.testing.assert_close(model.eval()(some_tokens(CLASSIC)), plain(some_tokens(CLASSIC)), rtol=1e-6, atol=1e-6)


def test_gradients_are_orthogonal_to_the_weights_under_sigma_reparam() -> None:
    model, _ = build(CLASSIC, "sigma_reparam")
    randomise(model)
    model.eval()(some_tokens(CLASSIC)).square().sum().backward()
    for name in REPARAMETRISED:
        w = public(model)[f"{name}.weight"]
        assert w.grad is not None
        assert w.grad.norm() > 0
        assert (w.grad * w).sum().abs() < 1e-5 * w.grad.norm() * w.norm(), name


def gamma_errors(model: GPT) -> list[float]:
    """How far each effective weight's spectral norm is from the size of its gamma, as a share of the latter."""
    errors = []
    for name in REPARAMETRISED:
        gamma = public(model)[f"trimtab.sigma_reparam.{name}.gamma"].abs().item()
        effective = model.get_submodule(name).weight.detach().double()
        errors.append(abs(torch.linalg.matrix_norm(effective, 2).item() / gamma - 1))
    return errors


def test_the_spectral_norm_becomes_the_size_of_gamma_in_training_under_sigma_reparam() -> None:
    model, _ = build(CLASSIC, "sigma_reparam")
    randomise(model)
    assert min(gamma_errors(model.eval())) > 0.01
    model.train()
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(100):
        still.step()
        model(some_tokens(CLASSIC))
    assert max(gamma_errors(model.eval())) < 1e-4


def test_power_iteration_rests_between_steps_under_sigma_reparam() -> None:
    model, _ = build(CLASSIC, "sigma_reparam")
    randomise(model)
    for step in (False, True):
        before = {name: u.clone() for name, u in public(model).items() if name.endswith(".u")}
        if step:
            torch.optim.SGD(model.parameters(), lr=0.0).step()
        for training in (True, False):
            model.train(training)(some_tokens(CLASSIC))
        assert len(before) == 8
        assert all(torch.equal(u, public(model)[name]) is not step for name, u in before.items())


# The model that the methods edit.


@CONVENTIONS
def test_no_token_reaches_the_logits_before_it(config: GPTConfig) -> None:
    model, _ = build(config)
    randomise(model)
    tokens = some_tokens(config)
    original = model(tokens)
    for t in range(tokens.shape[1]):
        edited = tokens.clone()
        edited[:, t] = (edited[:, t] + 1) % config.vocab_size
        changed = (model(edited) - original).abs().amax((0, 2))
        assert (changed[:t] < 1e-12).all()
        assert (changed[t:] > 1e-9).all()


@CONVENTIONS
def test_a_fresh_model_knows_nothing(config: GPTConfig) -> None:
    model, _ = build(dataclasses.replace(config, vocab_size=50))
    tokens = torch.randint(50, (64, 10), generator=torch.Generator().manual_seed(4))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(50), abs=0.1)


@CONVENTIONS
def test_fused_and_explicit_attention_agree(config: GPTConfig) -> None:
    fused, _ = build(config)
    explicit, _ = build(dataclasses.replace(config, attention="explicit"))
    randomise(fused)
    explicit.load_state_dict(fused.state_dict())
    tokens = some_tokens(config)
    torch.testing.assert_close(fused(tokens), explicit(tokens), rtol=1e-10, atol=1e-10)
