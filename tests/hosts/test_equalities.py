"""Methods on foreign models equal what other families have built in, by whatever kernel and on whatever batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from trimtab import host_for, methods
from trimtab.host import Host, Part, Site
from trimtab.intervention import ModelIntervention, Source
from trimtab.interventions import QKNorm, SoftCap, SoftClip, SoftTemp
from trimtab.method import Method
from trimtab.testing.families import FAMILIES, hugging_face, logits_of

SOURCE = Source(title="none", arxiv="", place="", equation="")
LONG, WINDOW = 20, 8


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tokens(num: int = LONG, batch: int = 2) -> Tensor:
    return torch.randint(0, 64, (batch, num), generator=torch.Generator().manual_seed(1))


def method(*interventions: ModelIntervention) -> Method:
    return Method("tried", interventions, SOURCE)


def sharpened(model: Any, factor: float = 12.0) -> Any:
    """Scores far from zero: at the initial ones every cap and every mask looks the same."""
    for view in host_for(model).find_parts():
        if view.part in (Part.Q, Part.K, Part.V):
            view.write(view.weight.detach() * factor)
    return model.eval()


def shuffled(module: nn.Module) -> None:
    """Gains away from 1."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(1 + 0.3 * torch.randn(p.shape, generator=generator))


def edit_at(host: Host, site: Site, layer: int) -> Any:
    (edit,) = next(tap.slot for tap in host.taps(site) if tap.layer == layer)
    return edit


def seen_at(host: Host, site: Site, layer: int, **inputs: Any) -> Tensor:
    seen: list[Tensor] = []
    slot = next(tap.slot for tap in host.taps(site) if tap.layer == layer)
    unwatch = slot.watch(lambda before, after: seen.append(after))
    host.model(tokens(), **inputs)
    unwatch()
    return seen[0]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))


# Norms of queries and keys


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rms_qk_norm_on_llama_is_qwen_3(dtype: torch.dtype) -> None:
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    same = {"rms_norm_eps": 1e-6, "rope_parameters": rope, "tie_word_embeddings": False, "attention_bias": False}
    llama: Any = sharpened(hugging_face("llama", **same)).to(dtype)
    qwen: Any = hugging_face("qwen3", **same).to(dtype).eval()
    missing, unexpected = qwen.load_state_dict(llama.state_dict(), strict=False)
    assert unexpected == []
    assert all("q_norm" in key or "k_norm" in key for key in missing)
    host = host_for(llama)
    method(QKNorm(norm="rms_norm", eps=1e-6)).install(host)
    for layer, block in enumerate(qwen.model.layers):
        shuffled(block.self_attn.q_norm)
        shuffled(block.self_attn.k_norm)
        for site, norm in ((Site.QUERY, block.self_attn.q_norm), (Site.KEY, block.self_attn.k_norm)):
            edit_at(host, site, layer).load_state_dict(norm.state_dict())
    losses: list[Tensor] = []
    for model in (llama, qwen):
        losses.append(F.cross_entropy(logits_of(model, tokens())[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()))
        losses[-1].backward()
    close(logits_of(llama, tokens()), logits_of(qwen, tokens()))
    theirs = dict(qwen.named_parameters())
    compared = 0
    for name, parameter in llama.named_parameters():
        if name in theirs:
            close(parameter.grad, theirs[name].grad, 2e-5)
            compared += 1
    assert compared == len(theirs) - len(missing)
    for layer, block in enumerate(qwen.model.layers):
        close(edit_at(host, Site.QUERY, layer).weight.grad, block.self_attn.q_norm.weight.grad, 2e-5)
        close(edit_at(host, Site.KEY, layer).weight.grad, block.self_attn.k_norm.weight.grad, 2e-5)


def test_llama_without_the_norm_is_not_qwen_3() -> None:
    llama: Any = sharpened(hugging_face("llama", tie_word_embeddings=False))
    qwen: Any = hugging_face("qwen3", tie_word_embeddings=False).eval()
    qwen.load_state_dict(llama.state_dict(), strict=False)
    difference = (logits_of(llama, tokens()) - logits_of(qwen, tokens())).abs().max()
    assert difference > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rms_qk_norm_across_the_width_is_the_attention_of_olmo_2(dtype: torch.dtype) -> None:
    olmo: Any = hugging_face("olmo2").to(dtype).eval()
    llama: Any = hugging_face("llama").to(dtype).eval()
    host = host_for(llama)
    method(QKNorm(norm="rms_norm", across="width", eps=olmo.config.rms_norm_eps)).install(host)
    x = torch.randn(2, LONG, 32, generator=torch.Generator().manual_seed(2), dtype=dtype)
    rotary = llama.model.rotary_emb(x, torch.arange(LONG)[None])
    for layer, (ours, block) in enumerate(zip(llama.model.layers, olmo.model.layers, strict=True)):
        theirs = block.self_attn
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            with torch.no_grad():
                getattr(theirs, name).weight.mul_(12)
            getattr(ours.self_attn, name).weight.data.copy_(getattr(theirs, name).weight)
        for site, norm in ((Site.QUERY, theirs.q_norm), (Site.KEY, theirs.k_norm)):
            shuffled(norm)
            edit_at(host, site, layer).norm.load_state_dict(norm.state_dict())
        found, _ = ours.self_attn(hidden_states=x, position_embeddings=rotary, attention_mask=None)
        expected, _ = theirs(hidden_states=x, position_embeddings=rotary, attention_mask=None)
        close(found, expected)


def test_norms_per_head_and_across_the_width_differ() -> None:
    outputs: list[Tensor] = []
    for across in ("head", "width"):
        model = sharpened(hugging_face("llama"))
        method(QKNorm(norm="rms_norm", across=across)).install(host_for(model))
        outputs.append(logits_of(model, tokens()))
    assert not torch.allclose(*outputs, atol=1e-4)


# Caps


@pytest.mark.parametrize("cap", [50.0, 20.0])
@pytest.mark.parametrize("base", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_the_soft_cap_is_that_of_gemma_2(cap: float, base: str, model_type: str) -> None:
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    more = {"sliding_window": WINDOW} if model_type == "mistral" else {}
    model: Any = sharpened(hugging_face(model_type, attn_implementation=base, **more), 40.0)
    host = host_for(model)
    method(SoftCap(cap=cap)).install(host)
    for layer, point in enumerate(host.find_attentions()):
        attention, calls = model.model.layers[layer].self_attn, list[tuple[Any, ...]]()
        unwatch = point.watch(lambda *what, calls=calls: calls.append(what))
        heads, values = seen_at(host, Site.HEAD_OUT, layer), seen_at(host, Site.VALUE, layer)
        unwatch()
        q, k, mask, scale = calls[0]
        assert float((q @ k.repeat_interleave(2, dim=1).mT * scale).abs().max()) > cap
        visible = torch.ones(LONG, LONG, dtype=torch.bool).tril()
        if model_type == "mistral":
            visible &= torch.ones(LONG, LONG, dtype=torch.bool).triu(1 - WINDOW)
        added = torch.zeros(1, 1, LONG, LONG).masked_fill(~visible, torch.finfo(torch.float32).min)
        expected, _ = eager_attention_forward(attention, q, k, values, added, scaling=scale, softcap=cap)
        uncapped, _ = eager_attention_forward(attention, q, k, values, added, scaling=scale)
        close(heads, expected.transpose(1, 2))
        assert not torch.allclose(heads, uncapped.transpose(1, 2), atol=1e-3), "the cap does nothing here"
        assert mask is None or mask.shape[-2:] == (LONG, LONG)


def test_a_soft_cap_on_gemma_without_its_own_is_gemma_2() -> None:
    plain: Any = hugging_face("gemma2", attn_logit_softcapping=20.0, sliding_window=WINDOW, attn_implementation="eager")
    bare: Any = hugging_face("gemma2", attn_logit_softcapping=None, sliding_window=WINDOW, attn_implementation="eager")
    expected = logits_of(sharpened(plain, 40.0), tokens())
    sharpened(bare, 40.0)
    uncapped = logits_of(bare, tokens())
    for tap in host_for(bare).taps(Site.SCORES):
        tap.slot.append(Capping(20.0))
    close(logits_of(bare, tokens()), expected)
    assert not torch.allclose(uncapped, expected, atol=1e-3)


class Capping(nn.Module):
    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    @override
    def forward(self, s: Tensor) -> Tensor:
        return torch.tanh(s / self.cap) * self.cap


# Kernels

EDITS: dict[str, tuple[ModelIntervention, ...]] = {
    "qk_norm": (QKNorm(),),
    "qk_norm_rms": (QKNorm(norm="rms_norm", across="width"),),
    "soft_cap": (SoftCap(cap=5.0),),
    "soft_clip": (SoftClip(),),
    "soft_temp": (SoftTemp(),),
    "qk_norm_cap": (QKNorm(), SoftCap(cap=1.0)),
}
BUILT_IN = {"nanochat-like": {"qk_norm"}, "Qwen 3": {"qk_norm"}, "OLMo 2": {"qk_norm"}, "Gemma 2": {"soft_cap"}}
FOREIGN = [name for name in FAMILIES if name not in ("trimtab GPT", "nanoGPT-like", "nanochat-like")]
FUSED = [name for name in FOREIGN if name != "Gemma 2"]  # transformers refuses "sdpa" for Gemma 2: it has no cap there
BASES = [(name, base) for name in FOREIGN for base in ("eager", "sdpa") if name in FUSED or base == "eager"]
TYPES = {"GPT-2": "gpt2", "GPT-NeoX": "gpt_neox", "Qwen 2": "qwen2", "Qwen 3": "qwen3", "OLMo 2": "olmo2"}
TYPES |= {"Gemma 2": "gemma2", "Mistral": "mistral", "Llama": "llama"}


def possible(family: str, edit: str) -> bool:
    return not BUILT_IN.get(family, set()) & {one.slug() for one in EDITS[edit]}


def based(family: str, base: str) -> Any:
    more = {"sliding_window": WINDOW} if family in ("Mistral", "Gemma 2") else {}
    return sharpened(hugging_face(TYPES[family], attn_implementation=base, **more))


@pytest.mark.parametrize(("family", "edit"), [(f, e) for f in FUSED for e in EDITS if possible(f, e)])
def test_the_eager_and_the_fused_base_give_the_same_with_edits(family: str, edit: str) -> None:
    outputs: list[Tensor] = []
    for base in ("eager", "sdpa"):
        model = based(family, base)
        plain = logits_of(model, tokens())
        method(*EDITS[edit]).install(host_for(model))
        outputs.append(logits_of(model, tokens()))
        assert model.config._attn_implementation.endswith(base)
        assert not torch.allclose(outputs[-1], plain, atol=1e-5), f"{edit} does nothing on {family}"
    close(outputs[0], outputs[1])


def identity_on_scores(model: nn.Module) -> None:
    for tap in host_for(model).taps(Site.SCORES):
        tap.slot.append(nn.Identity())


@pytest.mark.parametrize(("family", "base"), BASES)
def test_explicit_scores_give_what_the_kernel_of_the_family_gives(family: str, base: str) -> None:
    model = based(family, base)
    plain = logits_of(model, tokens())
    identity_on_scores(model)
    close(logits_of(model, tokens()), plain)


@pytest.mark.parametrize(("family", "base"), BASES)
def test_gradients_through_explicit_scores_are_those_of_the_kernel(family: str, base: str) -> None:
    gradients: list[list[Tensor]] = []
    for edited in (False, True):
        model = based(family, base)
        if edited:
            identity_on_scores(model)
        F.cross_entropy(logits_of(model, tokens())[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("base", ["eager", "sdpa"])
def test_dropout_of_weights_stays_with_edits_in_training_alone(base: str) -> None:
    model: Any = hugging_face("llama", attn_implementation=base, attention_dropout=0.5)
    sharpened(model).train()
    identity_on_scores(model)
    first, second = logits_of(model, tokens()), logits_of(model, tokens())
    assert not torch.allclose(first, second)
    model.eval()
    assert torch.equal(logits_of(model, tokens()), logits_of(model, tokens()))


@pytest.mark.parametrize("family", ["Llama", "Qwen 3", "Gemma 2", "GPT-NeoX"])
def test_dropped_weights_are_those_that_the_plain_function_drops(family: str) -> None:
    outputs: list[Tensor] = []
    for edited in (False, True):
        model: Any = hugging_face(TYPES[family], attn_implementation="eager", attention_dropout=0.5)
        sharpened(model).train()
        if edited:
            identity_on_scores(model)
        torch.manual_seed(3)
        outputs.append(logits_of(model, tokens()))
    close(outputs[1], outputs[0])


@pytest.mark.parametrize("family", FUSED)
def test_recomputation_in_backward_sees_the_same_edits(family: str) -> None:
    gradients: list[list[Tensor]] = []
    for recomputed in (False, True):
        model = based(family, "sdpa").train()
        method(*EDITS["soft_temp"]).install(host_for(model))
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        F.cross_entropy(logits_of(model, tokens())[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("edit", ["qk_norm", "soft_cap", "soft_clip"])
@pytest.mark.parametrize("family", ["trimtab GPT", "Llama", "Mistral", "GPT-2", "nanoGPT-like", "nanochat-like"])
def test_a_traced_model_gives_the_same_with_edits(family: str, edit: str) -> None:
    if not possible(family, edit):
        edit = "soft_temp"
    model = sharpened(FAMILIES[family]())
    plain = logits_of(model, tokens())
    method(*EDITS[edit]).install(host_for(model))
    expected = logits_of(model, tokens())
    torch.compiler.reset()
    close(logits_of(torch.compile(model, backend="aot_eager"), tokens()), expected)  # pyright: ignore
    assert not torch.allclose(expected, plain, atol=1e-5)


# Padding


@pytest.mark.parametrize(
    ("family", "base", "edit"),
    [(f, b, e) for f, b in BASES for e in (*EDITS, "nothing") if e == "nothing" or possible(f, e)],
)
def test_a_left_padded_batch_agrees_with_the_unpadded_sequences(family: str, base: str, edit: str) -> None:
    model = based(family, base)
    if edit == "nothing":
        identity_on_scores(model)
    else:
        method(*EDITS[edit]).install(host_for(model))
    lengths = (LONG, LONG - 7)
    whole, visible = tokens(), torch.ones(2, LONG, dtype=torch.long)
    whole[1, :7], visible[1, :7] = 0, 0
    positions = (visible.cumsum(-1) - 1).clamp(min=0)
    padded = model(whole, attention_mask=visible, position_ids=positions).logits
    assert bool(padded.isfinite().all()), "NaN from rows that see nothing"
    for row, length in enumerate(lengths):
        alone = model(whole[row : row + 1, LONG - length :]).logits
        close(padded[row : row + 1, LONG - length :], alone)


@pytest.mark.parametrize(("family", "base"), BASES)
def test_gradients_of_a_left_padded_batch_are_finite(family: str, base: str) -> None:
    model = based(family, base)
    identity_on_scores(model)
    visible = torch.ones(2, LONG, dtype=torch.long)
    visible[1, :7] = 0
    logits = model(tokens(), attention_mask=visible).logits
    F.cross_entropy(logits[:, 8:-1].flatten(0, 1), tokens()[:, 9:].flatten()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("edit", ["qk_norm", "soft_cap", "soft_clip", "soft_temp"])
@pytest.mark.parametrize("family", ["Llama", "Mistral", "GPT-2", "GPT-NeoX"])
def test_a_step_with_a_cache_agrees_with_the_whole_sequence(family: str, edit: str) -> None:
    model = based(family, "sdpa")
    method(*EDITS[edit]).install(host_for(model))
    whole = model(tokens()).logits
    first = model(tokens()[:, :13], use_cache=True)
    rest = [first.logits]
    cache = first.past_key_values
    for position in range(13, LONG):
        step = model(tokens()[:, position : position + 1], past_key_values=cache, use_cache=True)
        rest.append(step.logits)
    close(torch.cat(rest, dim=1), whole)


@pytest.mark.parametrize(("family", "base"), BASES)
def test_several_tokens_after_a_cache_agree_with_the_whole_sequence(family: str, base: str) -> None:
    model = based(family, base)
    method(*EDITS["soft_temp"]).install(host_for(model))
    whole = model(tokens()).logits
    first = model(tokens()[:, :11], use_cache=True)
    second = model(tokens()[:, 11:], past_key_values=first.past_key_values, use_cache=True)
    close(torch.cat((first.logits, second.logits), dim=1), whole)


# Sliding windows


@pytest.mark.parametrize(("family", "base"), [pair for pair in BASES if pair[0] in ("Mistral", "Gemma 2")])
def test_nothing_outside_the_window_is_attended_to_with_edits(family: str, base: str) -> None:
    model = based(family, base)
    host = host_for(model)
    method(SoftTemp()).install(host)
    weights: list[Tensor] = []
    for tap in host.taps(Site.WEIGHTS):
        tap.slot.append(nn.Identity())
        tap.slot.watch(lambda before, after: weights.append(after))
    model(tokens())
    outside = torch.ones(LONG, LONG, dtype=torch.bool).tril(-WINDOW)
    sliding = [getattr(block.self_attn, "sliding_window", None) for block in model.model.layers]
    sliding = [WINDOW] * len(sliding) if family == "Mistral" else sliding
    assert WINDOW in sliding
    for one, window in zip(weights, sliding, strict=True):
        assert bool((one[..., outside] == 0).all()) == (window is not None)
        close(one.sum(-1), torch.ones(()).expand(one.shape[:-1]))


def test_a_window_longer_than_the_sequence_is_llama_with_edits() -> None:
    outputs: list[Tensor] = []
    for model_type, more in (
        ("mistral", {"sliding_window": LONG + 1}),
        ("llama", {}),
        ("mistral", {"sliding_window": 4}),
    ):
        rope = {"rope_type": "default", "rope_theta": 10_000.0}
        model: Any = hugging_face(
            model_type, rope_parameters=rope, rms_norm_eps=1e-6, tie_word_embeddings=False, **more
        )
        sharpened(model)
        method(SoftCap(cap=5.0), QKNorm()).install(host_for(model))
        outputs.append(logits_of(model, tokens()))
    close(outputs[0], outputs[1])
    assert not torch.allclose(outputs[2], outputs[1], atol=1e-4)


def every_row(q_BHTK: Tensor) -> Tensor:
    return torch.arange(q_BHTK.shape[2])[None]


@pytest.mark.parametrize("base", ["eager", "sdpa"])
def test_probes_see_the_window(base: str) -> None:
    from trimtab.watching.attention import query_rows

    model = based("Mistral", base)
    host = host_for(model)
    for point in host.find_attentions():
        calls: list[tuple[Any, ...]] = []
        unwatch = point.watch(lambda *what, calls=calls: calls.append(what))
        model(tokens())
        unwatch()
        (block,) = list(query_rows(point, *calls[0], every_row(calls[0][0])))
        _, visible, weights = block
        assert int(visible.sum(-1).max()) == WINDOW
        assert float(weights.masked_fill(visible, 0.0).abs().max()) == 0


@pytest.mark.parametrize(("family", "base"), BASES)
def test_what_probes_compute_of_attention_is_what_the_model_computes(family: str, base: str) -> None:
    from trimtab.watching.attention import query_rows

    model = based(family, base)
    host = host_for(model)
    for layer, point in enumerate(host.find_attentions()):
        calls: list[tuple[Any, ...]] = []
        unwatch = point.watch(lambda *what, calls=calls: calls.append(what))
        heads, values = seen_at(host, Site.HEAD_OUT, layer), seen_at(host, Site.VALUE, layer)
        unwatch()
        (block,) = list(query_rows(point, *calls[0], every_row(calls[0][0])))
        groups = heads.shape[1] // values.shape[1]
        close(block[2] @ values.repeat_interleave(groups, dim=1), heads)
        assert math.isfinite(float(block[0][block[1]].abs().max()))


def test_catalogue_and_these_tests_know_the_same_edits_of_attention() -> None:
    assert {"qk_norm", "soft_cap", "soft_clip", "soft_temp", "qk_norm_cap"} <= set(methods.catalogue())


@pytest.mark.parametrize(("num_queries", "num_keys"), [(3, 5), (5, 3), (4, 4)])
def test_an_intercepted_causal_mask_is_aligned_as_torch_aligns_it(num_queries: int, num_keys: int) -> None:
    from trimtab.seams import InterceptingSeam

    class Attention(nn.Module):
        @override
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, k, is_causal=True)

    attention = Attention()
    source = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 2, length, 8, generator=source) for length in (num_queries, num_keys))
    plain = attention(q, k)
    masks: list[Tensor | None] = []
    unwatch = InterceptingSeam([attention]).watch(attention, lambda q, k, mask, scale: masks.append(mask))
    assert torch.equal(attention(q, k), plain)
    unwatch()
    (mask,) = masks
    assert (mask is None) == (num_queries == num_keys)
    if mask is not None:
        close(F.scaled_dot_product_attention(q, k, k, mask), plain)
