"""QK-Clip: the same batch has no larger score than the threshold afterwards, in every layout of heads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab import GPT, GPTConfig, host_for, methods, rules
from trimtab.host import Host, Part
from trimtab.intervention import ConflictError
from trimtab.interventions import MLRA, QKClip
from trimtab.method import install
from trimtab.probes import named
from trimtab.testing.families import FAMILIES, hugging_face
from trimtab.watching import watch

THRESHOLD = 0.5
# Families without a norm of queries and keys; the others are refused.
CLIPPED = ["trimtab GPT", "GPT-2", "Llama", "GPT-NeoX", "nanoGPT-like"]


def scores(host: Host, tokens: Tensor) -> dict[tuple[int, int], float]:
    """Largest score of every head, by layer and head, read by a probe."""
    watched = watch(host, named("max_logit"))
    host.model.train()
    host.model(tokens)
    row = watched.read()
    watched.remove()
    found: dict[tuple[int, int], float] = {}
    for key, value in row.items():
        if key.endswith("/max_logit"):
            layer, head = re.findall(r"\d+", key.removesuffix("/max_logit"))
            found[int(layer), int(head)] = value
    return found


def largest_of_first_layer(host: Host) -> float:
    """Inputs of later layers change with the layers before them."""
    return max(value for (layer, _), value in scores(host, tokens_of()).items() if layer == 0)


def enlarged(host: Host, factor: float, seed: int = 1) -> None:
    """Make queries and keys of some heads large, with biases where there are any."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in (Part.Q, Part.K):
            for view in host.parts(part):
                view.write(factor * torch.randn(view.weight.shape, generator=generator))
                bias = getattr(view.module, "bias", None)
                if isinstance(bias, Tensor):
                    rows = slice(None) if view.rows is None else view.rows
                    bias[rows] = torch.randn(bias[rows].shape, generator=generator)


def idle(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that moves nothing, so that the rule alone acts."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def tokens_of(seed: int = 0) -> Tensor:
    return torch.randint(0, 60, (3, 16), generator=torch.Generator().manual_seed(seed))


def act(model: nn.Module, rule: QKClip, batches: Sequence[Tensor], **more: Any) -> rules.AttachedRules:
    """One step with these micro-batches."""
    optimizer = idle(model)
    attached = rules.attach(optimizer, model, [rule], **more)
    model.train()
    for tokens in batches:
        output = model(tokens)
        getattr(output, "logits", output).sum().backward()
    optimizer.step()
    return attached


@pytest.mark.parametrize("family", CLIPPED)
def test_the_same_batch_has_no_larger_score_than_the_threshold_afterwards(family: str) -> None:
    model = FAMILIES[family]()
    host = host_for(model)
    enlarged(host, 0.25)
    before = scores(host, tokens_of())
    over = {head for head, value in before.items() if value > THRESHOLD}
    assert len(over) > 0, "the test needs heads above the threshold"
    act(model, QKClip(threshold=THRESHOLD), [tokens_of()])
    after = scores(host, tokens_of())
    groups = len(before) // len({layer for layer, _ in before}) // _key_heads(host)
    for (layer, head), value in before.items():
        largest = max(before[layer, other] for other in before_group(head, groups))
        factor = THRESHOLD / max(largest, THRESHOLD)
        if layer == 0:  # the inputs of later layers change with the layers before them
            assert after[layer, head] <= THRESHOLD + 1e-4
            assert after[layer, head] == pytest.approx(value * factor, abs=2e-4)


def before_group(head: int, groups: int) -> range:
    """The query heads that share a key head with this one."""
    first = head // groups * groups
    return range(first, first + groups)


def _key_heads(host: Host) -> int:
    return next(tap.num_heads for tap in host.find_taps() if tap.site == "key_rotated")


def test_the_groups_of_llama_share_their_factor() -> None:
    assert _key_heads(host_for(FAMILIES["Llama"]())) == 2


def test_heads_below_the_threshold_keep_every_bit() -> None:
    model = FAMILIES["GPT-2"]()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    act(model, QKClip(threshold=100.0), [tokens_of()])
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_only_rows_of_clipped_heads_and_no_values_change() -> None:
    model = FAMILIES["trimtab GPT"]()
    host = host_for(model)
    enlarged(host, 0.25)
    largest = {head: value for (layer, head), value in scores(host, tokens_of()).items() if layer == 0}
    threshold = sorted(largest.values())[2]
    before = model.blocks[0].attn.qkv.weight.detach().clone()  # pyright: ignore
    act(model, QKClip(threshold=threshold), [tokens_of()])
    after = model.blocks[0].attn.qkv.weight.detach()  # pyright: ignore
    width = 32
    assert torch.equal(before[2 * width :], after[2 * width :])
    for head, value in largest.items():
        for part in (0, 1):
            rows = slice(part * width + head * 8, part * width + (head + 1) * 8)
            factor = (threshold / max(value, threshold)) ** 0.5
            assert torch.allclose(after[rows], before[rows] * factor, rtol=1e-4), (head, part)
            assert torch.equal(after[rows], before[rows]) == (value <= threshold)


def test_alpha_splits_the_factor_between_queries_and_keys() -> None:
    model = FAMILIES["Llama"]()
    host = host_for(model)
    enlarged(host, 0.25)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    act(model, QKClip(threshold=THRESHOLD, alpha=1.0), [tokens_of()])
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == ("q_proj" not in name), name
    assert largest_of_first_layer(host) <= THRESHOLD + 1e-4


def test_the_largest_score_is_that_of_all_micro_batches() -> None:
    models = [FAMILIES["Llama"](), FAMILIES["Llama"]()]
    for model in models:
        enlarged(host_for(model), 0.25)
    act(models[0], QKClip(threshold=THRESHOLD), [tokens_of(0), tokens_of(1)])
    act(models[1], QKClip(threshold=THRESHOLD), [torch.cat((tokens_of(0), tokens_of(1)))])
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5)


def test_one_factor_of_mlra_is_scaled() -> None:
    model = GPT(GPTConfig(vocab_size=64, width=32, num_heads=4, num_layers=2, context=32))
    host = host_for(model)
    install([MLRA(rank=8)], host)
    with torch.no_grad():
        for block in model.blocks:
            for part in (*block.attn.qkv.up, *block.attn.qkv.down):  # pyright: ignore
                part.weight.mul_(30)
    assert largest_of_first_layer(host) > THRESHOLD
    down = [block.attn.qkv.down[0].weight.detach().clone() for block in model.blocks]  # pyright: ignore
    act(model, QKClip(threshold=THRESHOLD), [tokens_of()])
    assert largest_of_first_layer(host) <= THRESHOLD + 1e-4
    kept = [block.attn.qkv.down[0].weight.detach() for block in model.blocks]  # pyright: ignore
    assert all(torch.equal(a, b) for a, b in zip(down, kept, strict=True))


def test_copies_of_the_weights_follow() -> None:
    model, average = FAMILIES["GPT-2"](), FAMILIES["GPT-2"]()
    for one in (model, average):
        enlarged(host_for(one), 0.25)
    masters = {name: p.detach().double() for name, p in model.named_parameters()}
    act(model, QKClip(threshold=THRESHOLD), [tokens_of()], copies=[average, masters])
    for (name, p), other in zip(model.named_parameters(), average.parameters(), strict=True):
        assert torch.equal(p, other), name
        assert torch.allclose(p.double(), masters[name], rtol=1e-6), name


def test_scores_that_are_negative_or_not_finite_scale_nothing() -> None:
    from trimtab.interventions.qk_clip import _Clip  # pyright: ignore[reportPrivateUsage]

    model = FAMILIES["GPT-2"]()
    optimizer = idle(model)
    attached = rules.attach(optimizer, model, [QKClip(threshold=1.0)])
    clip = attached.rules.update[0]
    assert isinstance(clip, _Clip)
    before = [p.detach().clone() for p in model.parameters()]
    for value in (-50.0, float("-inf"), float("inf"), float("nan")):
        for maxima in clip.maxima:
            maxima.fill_(value)
        clip(1, dict(model.named_parameters()))
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), value


def test_evaluation_between_the_steps_does_not_count() -> None:
    model = FAMILIES["Llama"]()
    enlarged(host_for(model), 0.25)
    attached = act(model, QKClip(threshold=1e6), [tokens_of()])
    clip: Any = attached.rules.update[0]
    model.eval()
    model(tokens_of(3))
    assert all(bool((maxima == -torch.inf).all()) for maxima in clip.maxima)


def test_scores_are_computed_at_every_nth_step_only() -> None:
    model = FAMILIES["Llama"]()
    optimizer = idle(model)
    attached = rules.attach(optimizer, model, [QKClip(threshold=1e6, every=3)])
    clip: Any = attached.rules.update[0]
    read: list[bool] = []
    for _ in range(7):
        model.train()
        getattr(model(tokens_of()), "logits").sum().backward()  # noqa: B009
        read.append(bool((clip.maxima[0] > -torch.inf).all()))
        optimizer.step()
    assert read == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("compiled", [False, True])
def test_recomputation_and_compilation_change_nothing(compiled: bool) -> None:
    results: list[list[Tensor]] = []
    for special in (False, True):
        torch.manual_seed(0)
        sizes = {"vocab_size": 64, "width": 32, "num_heads": 4, "num_layers": 2, "context": 32}
        model = GPT(GPTConfig(**sizes, recompute=special and not compiled))
        enlarged(host_for(model), 0.25)
        optimizer = idle(model)
        rules.attach(optimizer, model, [QKClip(threshold=THRESHOLD)])
        called: Any = torch.compile(model, backend="aot_eager") if special and compiled else model
        called(tokens_of()).sum().backward()
        optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(*results, strict=True))
    torch.manual_seed(0)
    fresh = GPT(GPTConfig(vocab_size=64, width=32, num_heads=4, num_layers=2, context=32))
    enlarged(host_for(fresh), 0.25)
    assert not all(torch.equal(a, b) for a, b in zip(results[1], fresh.parameters(), strict=True)), "it did not act"


@pytest.mark.parametrize("family", ["Qwen 3", "OLMo 2"])
def test_families_that_normalise_queries_and_keys_are_refused(family: str) -> None:
    model = FAMILIES[family]()
    with pytest.raises(ConflictError, match="normalises queries and keys"):
        rules.attach(idle(model), model, [QKClip()])


@pytest.mark.parametrize("slug", ["qk_norm", "qk_norm_cap", "qkv_norm", "qk_fc_norm", "sigma_reparam", "wesar"])
def test_methods_that_take_the_scale_out_again_are_refused(slug: str) -> None:
    model = hugging_face("llama")
    methods.catalogue()[slug].install(host_for(model))
    with pytest.raises(ConflictError, match="qk_clip: "):
        rules.attach(idle(model), model, [QKClip()])
