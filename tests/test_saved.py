"""Saved weights of models with methods: they load as the function that was saved, or they are refused."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.interventions import QKNorm, SoftCap, SoftClip
from trimtab.method import Method, SavedMethodError, install, installed_in
from trimtab.testing.families import hugging_face, logits_of

IDS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(3))
SLUGS = [slug for slug in methods.catalogue() if slug != "baseline"]


def gpt() -> nn.Module:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=64, context=16, num_layers=2, num_heads=4, width=32, init_std=0.2)).eval()


def of_library(model_type: str) -> Callable[[], nn.Module]:
    return lambda: hugging_face(model_type).eval()


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "trimtab GPT": gpt,
    "Llama": of_library("llama"),
    "GPT-2": of_library("gpt2"),
}


# The residual stream of other families cannot be edited, so deep_norm exists in our GPT alone.
PAIRS = [(family, slug) for family in FAMILIES for slug in SLUGS if family == "trimtab GPT" or slug != "deep_norm"]


@pytest.fixture(autouse=True)
def _library(request: pytest.FixtureRequest) -> None:
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("family", "") in ("Llama", "GPT-2"):
        pytest.importorskip("transformers")


def fresh(family: str, method: Method | None) -> nn.Module:
    model = FAMILIES[family]()
    if method is not None:
        method.install(host_for(model))
    return model


def trained(family: str, slug: str) -> nn.Module:
    """A model with a method, whose weights have moved."""
    model = fresh(family, methods.catalogue()[slug])
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=source))
    return model.eval()


def function_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return logits_of(model.eval(), IDS)


def is_same(one: nn.Module, two: nn.Module) -> bool:
    return torch.allclose(function_of(one), function_of(two), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "slug"), PAIRS)
def test_saved_weights_are_the_function_that_was_saved_or_are_refused(family: str, slug: str) -> None:
    model = trained(family, slug)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    method = methods.catalogue()[slug]
    # Into the same method: the same function.
    twin = fresh(family, method)
    twin.load_state_dict(copy.copy(state))
    assert is_same(twin, model)
    # Into a plain model: refused, unless the method sets initial weights alone.
    plain = FAMILIES[family]()
    before = function_of(plain)
    if methods.of(state):
        with pytest.raises(RuntimeError, match=r"trimtab\."):
            plain.load_state_dict(copy.copy(state))
        plain = FAMILIES[family]()
        kept = plain.load_state_dict(copy.copy(state), strict=False)
        named = [key for key in kept.unexpected_keys if key.endswith(".installed")]
        assert len(named) == len(methods.of(state))
    else:
        plain.load_state_dict(copy.copy(state))
        assert is_same(plain, model)
    # Into a fresh model, with what the weights name.
    again = FAMILIES[family]()
    assert torch.equal(function_of(again), before)
    methods.install_saved(host_for(again), copy.copy(state))
    assert is_same(again, model)
    # Into a model with another method.
    other = QKNorm(across="width") if slug != "qk_fc_norm" else SoftCap(cap=3.0)
    if methods.of(state):
        stranger = FAMILIES[family]()
        install([other], host_for(stranger))
        untouched = function_of(stranger)
        for strict in (True, False):
            with pytest.raises(SavedMethodError, match="saved with"):
                stranger.load_state_dict(copy.copy(state), strict=strict)
            assert torch.equal(function_of(stranger), untouched)


@pytest.mark.parametrize(("family", "slug"), PAIRS)
def test_a_plain_checkpoint_loads_as_the_method_on_its_weights_or_is_refused(family: str, slug: str) -> None:
    source = torch.Generator().manual_seed(1)
    plain = FAMILIES[family]()
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=source))
    state = {key: value.clone() for key, value in plain.state_dict().items()}
    model = fresh(family, methods.catalogue()[slug])
    if slug.startswith("mlra"):
        with pytest.raises(RuntimeError, match="was saved without mlra"):
            model.load_state_dict(copy.copy(state), strict=False)
        return
    if slug == "pc_layer":
        with pytest.raises(RuntimeError, match="were saved without pc_layer"):
            model.load_state_dict(copy.copy(state), strict=False)
        return
    model.load_state_dict(copy.copy(state), strict=False)
    # The same weights in a model that then gets the edits: as the method has it, but for what it draws at first.
    expected = copy.deepcopy(plain)
    named = {intervention.slug() for intervention in methods.of(model.state_dict())}
    edits = [receipt.intervention for receipt in installed_in(model) if receipt.slug in named]
    torch.manual_seed(0)
    install(edits, host_for(expected))
    if slug == "wesar":  # the gates were drawn for other weights, which are divided by them
        assert is_same(model, plain)
        return
    own = {key: value for key, value in model.state_dict().items() if key.startswith("trimtab.")}
    expected.load_state_dict(own, strict=False)
    assert is_same(model, expected)


@pytest.mark.parametrize(("family", "slug"), [pair for pair in PAIRS if pair[0] != "trimtab GPT"])
def test_save_pretrained_keeps_what_install_saved_puts_in(
    family: str, slug: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = trained(family, slug)
    model.save_pretrained(tmp_path)
    assert methods.of(tmp_path) == methods.of(model.state_dict())
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        loaded: Any = type(model).from_pretrained(tmp_path)
    finally:
        library.removeHandler(caplog.handler)
    for intervention in methods.of(tmp_path):
        assert f"trimtab.{intervention.slug()}.installed" in caplog.text
    methods.install_saved(host_for(loaded), tmp_path)
    assert is_same(loaded, model)


def test_the_same_method_with_other_settings_is_refused_and_initial_ones_do_not_matter() -> None:
    one = gpt()
    install([SoftCap(cap=30.0)], host_for(one))
    two = gpt()
    install([SoftCap(cap=50.0)], host_for(two))
    with pytest.raises(SavedMethodError, match=r"saved with soft_cap\(cap=30\), and the model has soft_cap\(cap=50\)"):
        two.load_state_dict(one.state_dict())
    from trimtab.interventions import LayerScale

    first, second = gpt(), gpt()
    install([LayerScale(initial=1e-5)], host_for(first))
    install([LayerScale(initial=1e-2)], host_for(second))
    second.load_state_dict(first.state_dict())
    assert is_same(first, second)


def test_what_was_installed_later_beside_it_does_not_keep_weights_from_loading() -> None:
    saved = gpt()
    methods.qk_norm.install(host_for(saved))
    both = gpt()
    methods.qk_norm.install(host_for(both))
    install([SoftClip()], host_for(both))
    both.load_state_dict(saved.state_dict())
    assert [i.slug() for i in methods.of(both.state_dict())] == ["qk_norm", "soft_clip"]


def test_a_removed_method_leaves_no_mark() -> None:
    model = gpt()
    keys = list(model.state_dict())
    with methods.soft_cap.applied(host_for(model)):
        assert list(model.state_dict()) == [*keys, "trimtab.soft_cap.installed"]
    assert list(model.state_dict()) == keys
    assert not hasattr(model, "trimtab")


def test_weights_of_a_wrapped_model_name_their_methods_too(tmp_path: Path) -> None:
    model = trained("trimtab GPT", "qk_norm_cap")
    wrapper = nn.ModuleDict({"module": model})
    save_file(
        {key: value.contiguous().clone() for key, value in wrapper.state_dict().items()}, tmp_path / "w.safetensors"
    )
    assert [i.slug() for i in methods.of(tmp_path / "w.safetensors")] == ["qk_norm", "soft_cap"]
    again = gpt()
    methods.install_saved(host_for(again), tmp_path / "w.safetensors")
    assert is_same(again, model)


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "mark", "stranger"])
def test_weights_that_do_not_fit_change_nothing(damage: str) -> None:
    state = dict(trained("trimtab GPT", "qk_norm").state_dict())
    if damage == "missing":
        del state["trimtab.qk_norm.blocks.1.attn.key.weight"]
    elif damage == "unknown":
        state["more"] = torch.zeros(1)
    elif damage == "shape":
        state["token_embedding.weight"] = torch.zeros(3, 32)
    elif damage == "mark":
        state["trimtab.qk_norm.installed"] = torch.zeros(4, dtype=torch.uint8)
    else:
        state["trimtab.qk_nrom.installed"] = state.pop("trimtab.qk_norm.installed")
    model = gpt()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SavedMethodError):
        methods.install_saved(host_for(model), state)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_folder_without_safetensors_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights_only=True"):
        methods.of(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        methods.of(tmp_path)


@pytest.mark.parametrize("slug", ["qk_norm", "sigma_reparam", "soft_cap", "mlra"])
def test_torchs_distributed_checkpoints_take_models_with_methods(slug: str) -> None:
    model = trained("trimtab GPT", slug)
    state = get_model_state_dict(model)
    assert set(state) == set(model.state_dict())
    twin = fresh("trimtab GPT", methods.catalogue()[slug])
    set_model_state_dict(twin, state)
    assert is_same(twin, model)
