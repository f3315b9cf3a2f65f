"""Every family holds the host contract, every method the method contract on every family; host_for refuses the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.host import (
    AttentionPoint,
    AttentionWatcher,
    Host,
    Part,
    PartView,
    Point,
    Site,
    SiteUnavailableError,
    Slot,
    Tap,
)
from trimtab.hosts import UnknownFamilyError
from trimtab.hosts.gpt import GPTHost
from trimtab.hosts.torch_encoder import TorchEncoderHost
from trimtab.intervention import ConflictError, ModelIntervention
from trimtab.method import Method, NotInstallableError, installed_in
from trimtab.probes import full
from trimtab.testing import MethodContract
from trimtab.testing.families import FAMILIES, logits_of
from trimtab.testing.host_contract import HostContract
from trimtab.watching import WatchError, watch

WITHOUT_CONFIG = ("nanoGPT-like", "nanochat-like")
BETWEEN = {
    "nanoGPT-like": "its fused projection has a random bias",
    "OLMo 2": "its norm of queries and keys goes over all heads together",
    "nanochat-like": "its norm of queries and keys comes after rotary",
}

NORMS_QK = {"qk_norm", "qk_norm_cap", "qk_fc_norm", "qkv_norm", "reordered_qk_norm"}
CONFLICTS = {
    "Qwen 3": NORMS_QK,
    "OLMo 2": NORMS_QK | {"reordered_norm", "sigma_reparam_normless"},
    "nanochat-like": NORMS_QK | {"logit_cap", "reordered_norm", "sigma_reparam_normless"},
    "Gemma 2": {
        "soft_cap",
        "logit_cap",
        "qk_norm_cap",
        "qk_fc_norm",
        "reordered_norm",
        "reordered_qk_norm",
        "scaled_embed",
    },
}
for _family in FAMILIES:
    if _family != "trimtab GPT":  # the residual stream of others cannot be edited
        CONFLICTS[_family] = CONFLICTS.get(_family, set()) | {"deep_norm"}
REFUSED = [(family, slug) for family, slugs in CONFLICTS.items() for slug in sorted(slugs)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def host_contract_of(family: str) -> type[HostContract]:
    class Contract(HostContract):
        bias_or_norm_between = BETWEEN.get(family, "")

        @override
        def make_host(self) -> Host:
            return host_for(FAMILIES[family]())

    return Contract


def method_contract_of(method: Method, family: str) -> type[MethodContract]:
    class Contract(MethodContract):
        @override
        def make_method(self) -> Method:
            return method

        @override
        def make_host(self) -> Host:
            return host_for(FAMILIES[family]())

    return Contract


for _family in FAMILIES:
    _plain_name = "".join(c for c in _family.title() if c.isalnum())
    _name = f"TestHost{_plain_name}"
    globals()[_name] = type(_name, (host_contract_of(_family),), {})
    for _slug, _method in methods.catalogue().items():
        if _slug not in CONFLICTS.get(_family, ()):
            _name = f"Test{_plain_name}{_slug.title().replace('_', '')}"
            globals()[_name] = type(_name, (method_contract_of(_method, _family),), {})


# Conflicts


@pytest.mark.parametrize(("family", "slug"), REFUSED)
def test_a_method_that_the_family_has_built_in_is_refused_and_leaves_the_model_bitwise(family: str, slug: str) -> None:
    model = FAMILIES[family]().eval()
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    names, output = [name for name, _ in model.named_modules()], logits_of(model, tokens)
    host = host_for(model)
    with pytest.raises((ConflictError, SiteUnavailableError), match=r"built in|offers no"):
        methods.catalogue()[slug].install(host)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [name for name, _ in model.named_modules()] == names
    assert installed_in(model) == ()
    assert torch.equal(logits_of(model, tokens), output)


def test_a_method_whose_site_one_family_lacks_is_refused_before_anything_is_put_in() -> None:
    model = FAMILIES["OLMo 2"]()
    keys = list(model.state_dict())
    from trimtab.interventions import PreNormRemoval, SoftTemp

    source = methods.catalogue()["baseline"].source
    with pytest.raises(SiteUnavailableError, match="OLMo 2 offers no part 'attn_norm'"):
        Method("both", (SoftTemp(), PreNormRemoval()), source).install(host_for(model))
    assert list(model.state_dict()) == keys
    assert installed_in(model) == ()


def test_a_foreign_family_offers_no_residual_site() -> None:
    with pytest.raises(SiteUnavailableError, match="Llama, Mistral, Qwen 2 offers no site 'residual'; it offers attn_"):
        host_for(FAMILIES["Llama"]()).taps(Site.RESIDUAL)


@pytest.mark.parametrize("family", ["Llama", "GPT-2", "Gemma 2"])
def test_the_attention_of_the_configuration_is_named_as_before_after_a_removal(family: str) -> None:
    model = FAMILIES[family]()
    before = model.config._attn_implementation
    with methods.soft_clip.applied(host_for(model)):
        assert model.config._attn_implementation != before
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("trimtab GPT", *WITHOUT_CONFIG)])
def test_two_models_that_share_a_configuration_do_not_share_edits(family: str) -> None:
    first = FAMILIES[family]()
    second = type(first)(first.config).eval()
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    plain = logits_of(second, tokens)
    methods.soft_clip.install(host_for(first))
    assert torch.equal(logits_of(second, tokens), plain)


# host_for


def test_a_module_of_no_family_is_refused_with_the_families_that_are_known() -> None:
    with pytest.raises(UnknownFamilyError, match="no host knows Linear; known families: trimtab GPT; Llama"):
        host_for(nn.Linear(2, 2))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_compiled_model_is_refused_with_the_advice_to_take_the_one_inside(family: str) -> None:
    model = FAMILIES[family]()
    compiled = torch.compile(model, backend="aot_eager")
    with pytest.raises(UnknownFamilyError, match=f"OptimizedModule wraps a {type(model).__name__}"):
        host_for(compiled)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_wrapped_model_is_refused_with_the_advice_to_take_the_one_inside(family: str) -> None:
    class DistributedDataParallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = FAMILIES[family]()
    with pytest.raises(UnknownFamilyError, match=f"DistributedDataParallel wraps a {type(model).__name__}: take"):
        host_for(DistributedDataParallel(model))


class Wrapper(nn.Module):
    """As the modules of training libraries and of adapters hold a model."""

    def __init__(self, model: nn.Module, *beside: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"lm": model})
        self.beside = nn.ModuleList(beside)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_host_of_a_model_inside_a_wrapper_is_found(family: str) -> None:
    model = FAMILIES[family]()
    host = host_for(Wrapper(model, nn.ReLU()))
    assert host.model is model
    assert type(host) is type(host_for(model))


def test_a_model_that_is_a_part_of_another_is_named_and_not_taken_for_the_whole() -> None:
    model = FAMILIES["Llama"]()
    with pytest.raises(UnknownFamilyError, match=r"has parameters beside inner\.lm \(LlamaForCausalLM\)"):
        host_for(Wrapper(model, nn.Linear(2, 2)))
    with pytest.raises(UnknownFamilyError, match=r"inner\.lm \(LlamaForCausalLM\), beside\.0 \(NanoGPT\)"):
        host_for(Wrapper(model, FAMILIES["nanoGPT-like"]()))


@pytest.mark.parametrize("family", ["trimtab GPT", "Llama", "nanoGPT-like"])
def test_a_model_compiled_in_place_takes_neither_methods_nor_probes(family: str) -> None:
    model = FAMILIES[family]()
    model.compile(backend="aot_eager")
    host = host_for(model)
    with pytest.raises(NotInstallableError, match="compiled"):
        methods.qk_norm.install(host)
    with pytest.raises(WatchError, match="compiled"):
        watch(host, full)


def test_a_model_without_head_of_the_transformers_library_is_of_no_family() -> None:
    with pytest.raises(UnknownFamilyError, match="no host knows LlamaModel"):
        host_for(FAMILIES["Llama"]().model)  # pyright: ignore[reportArgumentType]


def test_every_family_has_its_own_host() -> None:
    hosts = {name: type(host_for(make())).__name__ for name, make in FAMILIES.items()}
    assert hosts == {
        "trimtab GPT": "GPTHost",
        "Llama": "LlamaHost",
        "Mistral": "LlamaHost",
        "Qwen 2": "LlamaHost",
        "Qwen 3": "Qwen3Host",
        "OLMo 2": "Olmo2Host",
        "Gemma 2": "Gemma2Host",
        "GPT-2": "GPT2Host",
        "GPT-NeoX": "GPTNeoXHost",
        "nanoGPT-like": "NanoGPTHost",
        "nanochat-like": "NanochatHost",
    }


# nanoGPT-like seams


class OwnAttention(nn.Module):
    """Writes its attention out, as nanoGPT does without flash attention."""

    def __init__(self, like: Any, flash: bool | None) -> None:
        super().__init__()
        self.c_attn, self.c_proj, self.n_head = like.c_attn, like.c_proj, like.n_head
        if flash is not None:
            self.flash = flash

    @override
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1))
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        w = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        return self.c_proj((w @ v).transpose(1, 2).flatten(2))


def written_out(flash: bool | None) -> Any:
    model: Any = FAMILIES["nanoGPT-like"]()
    for block in model.transformer["h"]:
        block.attn = OwnAttention(block.attn, flash)
    return model


def test_a_nanogpt_that_says_it_writes_its_attention_out_refuses_edits_of_scores_and_stays_as_it_was() -> None:
    model = written_out(flash=False)
    tokens = torch.randint(0, 64, (2, 16))
    plain, names = model(tokens), [name for name, _ in model.named_modules()]
    with pytest.raises(SiteUnavailableError, match="flash is False"):
        methods.soft_cap.install(host_for(model))
    assert [name for name, _ in model.named_modules()] == names
    assert installed_in(model) == ()
    assert torch.equal(model(tokens), plain)


def test_a_nanogpt_that_writes_its_attention_out_unsaid_fails_in_the_forward_pass_and_not_in_silence() -> None:
    model = written_out(flash=None)
    methods.soft_cap.install(host_for(model))
    with pytest.raises(RuntimeError, match="did not call torch"):
        model(torch.randint(0, 64, (2, 16)))


def test_a_nanogpt_that_writes_its_attention_out_still_takes_edits_of_queries() -> None:
    model = written_out(flash=False)
    tokens = torch.randint(0, 64, (2, 16))
    plain = model(tokens)
    methods.qk_norm.install(host_for(model))
    assert not torch.allclose(model(tokens), plain)


# torch's encoder


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


ON_THE_MODEL = [
    slug
    for slug, method in methods.catalogue().items()
    if any(isinstance(intervention, ModelIntervention) for intervention in method.interventions)
]


@pytest.mark.parametrize("slug", ON_THE_MODEL)
def test_torchs_encoder_takes_probes_only(slug: str) -> None:
    model = encoder()
    host = host_for(model)
    assert isinstance(host, TorchEncoderHost)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SiteUnavailableError, match="probes only"):
        methods.catalogue()[slug].install(host)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert list(model.state_dict()) == list(state)
    assert installed_in(model) == ()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_that_is_seen_of_torchs_encoder_gives_its_own_weights(masked: bool) -> None:
    model = encoder().train()
    seen: list[tuple[Any, ...]] = []
    host = host_for(model)
    for point in host.find_attentions():
        point.watch(lambda *what: seen.append(what))
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(3)) * 3
    mask = nn.Transformer.generate_square_subsequent_mask(6) if masked else None
    model(x, mask=mask)
    layer: Any = host.model.layers[0]  # pyright: ignore[reportIndexIssue]
    _, expected = layer.self_attn(x, x, x, attn_mask=mask, average_attn_weights=False)
    q, k, given, scale = seen[0]
    scores = q @ k.mT * scale
    torch.testing.assert_close((scores if given is None else scores + given).softmax(-1), expected)


def test_a_watch_of_torchs_encoder_reads_and_leaves() -> None:
    model = encoder()
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(3))
    plain = model(x)
    with watch(host_for(model), full) as watched:
        loss = F.mse_loss(model(x), x)
        loss.backward()
        row = watched.read()
    assert {"qkv_input/layer.0/rms", "attention/layer.1.head.1/entropy", "fc2_output_grad/layer.0/rms"} <= {
        key.replace("attention_entropy", "entropy") for key in row
    }
    assert torch.equal(model(x), plain)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_a_gpt_is_watched_by_its_host_after_a_round_of_methods() -> None:
    host = host_for(GPT(GPTConfig(vocab_size=64, context=16, num_layers=1, num_heads=2, width=16)))
    with methods.qk_norm_cap.applied(host), watch(host, full) as watched:
        tokens = torch.randint(0, 64, (2, 16))
        F.cross_entropy(host.model(tokens).flatten(0, 1), tokens.flatten()).backward()
        assert all(abs(v) < 1e6 for v in watched.read().values())


def test_a_refused_nanogpt_is_refused_every_time_and_never_edited_in_silence() -> None:
    model = written_out(flash=False)
    for _ in range(6):
        with pytest.raises(SiteUnavailableError, match="flash is False"):
            methods.soft_cap.install(host_for(model))


def test_a_refused_watch_leaves_no_hooks_and_no_open_sink() -> None:
    class Sink:
        calls: ClassVar[list[str]] = []

        def open(self, run: str) -> None:
            self.calls.append("open")

        def log(self, step: int, row: dict[str, float]) -> None:
            self.calls.append("log")

        def close(self, status: str) -> None:
            self.calls.append("close")

    model = written_out(flash=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.raises((SiteUnavailableError, WatchError), match="flash is False"):
        watch(host_for(model), full, optimizer=optimizer, sinks=[Sink()])
    left = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in model.named_modules()}
    left |= {"before the step": len(optimizer._optimizer_step_pre_hooks)}
    left |= {"after the step": len(optimizer._optimizer_step_post_hooks)}
    left |= {"sinks open": Sink.calls.count("open") - Sink.calls.count("close")}
    assert {name: count for name, count in left.items() if count} == {}


# The host contract catches broken hosts


class Broken(GPTHost):
    """Wrong about one thing."""

    wrong: ClassVar[str]

    @override
    def find_taps(self) -> Sequence[Tap]:
        taps = super().find_taps()
        changes: dict[str, Callable[[Tap], Tap]] = {
            "width": lambda t: replace(t, width=t.width + 1) if t.site is Site.MLP_HIDDEN else t,
            "heads": lambda t: replace(t, num_heads=1) if t.site is Site.SCORES else t,
            "dead slot": lambda t: replace(t, slot=Slot()) if t.site is Site.ATTN_OUT else t,
            "layer": lambda t: replace(t, layer=0) if t.site is Site.QUERY and t.layer == 1 else t,
            "swapped sites": lambda t: replace(t, site={"query": Site.KEY, "key": Site.QUERY}.get(t.site, t.site)),
        }
        return [changes.get(self.wrong, lambda t: t)(tap) for tap in taps]

    @override
    def find_parts(self) -> Sequence[PartView]:
        swap = {Part.Q: Part.V, Part.V: Part.Q}
        views = super().find_parts()
        if self.wrong == "swapped parts":
            return [replace(view, part=swap.get(view.part, view.part)) for view in views]
        if self.wrong == "all rows":
            return [replace(view, rows=None) for view in views]
        if self.wrong == "transposed":
            return [replace(view, transposed=view.part is Part.FC1) for view in views]
        if self.wrong == "interleaved":
            rows = torch.arange(3 * 32).view(-1, 3)
            places = {Part.Q: 0, Part.K: 1, Part.V: 2}
            return [replace(v, rows=rows[:, places[v.part]]) if v.part in places else v for v in views]
        return views

    @override
    def find_points(self) -> Sequence[Point]:
        points = list(super().find_points())
        if self.wrong == "foreign point":
            points.append(Point("more", None, nn.Linear(2, 2), "output"))
        if self.wrong == "uncalled point":
            points.append(Point("more", 0, cast(Any, self.model).blocks, "output"))
        return points

    @override
    def find_attentions(self) -> Sequence[AttentionPoint]:
        points = super().find_attentions()

        def other(point: AttentionPoint) -> AttentionPoint:
            def seeing(watcher: AttentionWatcher) -> Callable[[], None]:
                if self.wrong == "no scale":
                    return point.watch(lambda q, k, mask, scale: watcher(q, k, mask, 1.0))
                if self.wrong == "no mask":
                    return point.watch(lambda q, k, mask, scale: watcher(q, k, torch.zeros(16, 16), scale))
                if self.wrong == "leaving":
                    point.watch(watcher)
                    return lambda: None
                return point.watch(lambda q, k, mask, scale: watcher(k, q, mask, scale))

            return replace(point, watch=seeing)

        return [other(p) for p in points] if self.wrong in ("no scale", "no mask", "exchanged", "leaving") else points


class Leaving(GPTHost):
    """Its slots leave something behind."""

    @override
    def find_taps(self) -> Sequence[Tap]:
        taps = list(super().find_taps())
        for tap in taps:
            tap.slot.__class__ = LeavingSlot
        return taps


class LeavingSlot(Slot):
    @override
    def discard(self, edit: nn.Module) -> None:
        super().discard(edit)
        self.register_forward_hook(lambda *_: None)


def failures(host: Callable[[nn.Module], Host]) -> list[str]:
    class Contract(HostContract):
        @override
        def make_host(self) -> Host:
            return host(FAMILIES["trimtab GPT"]())

    failed: list[str] = []
    for name in dir(HostContract):
        if name.startswith("test_"):
            try:
                getattr(Contract(), name)()
            except (AssertionError, RuntimeError, LookupError):
                failed.append(name)
    return failed


@pytest.mark.parametrize(
    "wrong",
    [
        *("width", "heads", "dead slot", "layer", "swapped sites"),
        *("swapped parts", "all rows", "transposed", "interleaved"),
        *("foreign point", "uncalled point", "no scale", "no mask", "exchanged", "leaving"),
    ],
)
def test_the_host_contract_catches(wrong: str) -> None:
    assert failures(type("Wrong", (Broken,), {"wrong": wrong}))


def test_the_host_contract_catches_slots_that_leave_hooks() -> None:
    assert "test_an_edit_at_every_site_reaches_the_output_and_leaves_no_trace" in failures(Leaving)


def test_the_host_contract_lets_a_sound_host_pass() -> None:
    assert failures(GPTHost) == []
