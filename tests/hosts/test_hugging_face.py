"""The attention registry: shared configurations, kernels that cannot be reached, and hosts of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trimtab import host_for, methods
from trimtab.host import SiteUnavailableError
from trimtab.hosts import _REGISTERED, UnknownFamilyError, register
from trimtab.hosts.gpt import GPTHost
from trimtab.interventions import SoftCap
from trimtab.method import install
from trimtab.testing.families import FAMILIES, logits_of

pytest.importorskip("transformers")


def tokens() -> torch.Tensor:
    return torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))


def test_two_models_of_one_configuration_do_not_switch_each_other_off() -> None:
    first = FAMILIES["Llama"]()
    second = type(first)(first.config)
    second.load_state_dict(first.state_dict())
    assert second.config is first.config
    mine = install([SoftCap(cap=0.01)], host_for(first))
    capped = logits_of(first, tokens())
    plain = logits_of(second, tokens())
    other = install([SoftCap(cap=0.01)], host_for(second))
    other[0].remove()
    assert torch.equal(logits_of(first, tokens()), capped)
    assert torch.equal(logits_of(second, tokens()), plain)
    assert not torch.allclose(capped, plain)
    mine[0].remove()
    assert first.config._attn_implementation == "sdpa"
    assert not first.model.layers[0].self_attn._forward_pre_hooks


def test_another_implementation_chosen_later_is_an_error_and_not_silence() -> None:
    model = FAMILIES["Llama"]()
    methods.soft_temp.install(host_for(model))
    model.set_attn_implementation("eager")
    with pytest.raises(RuntimeError, match="choose it before they are installed"):
        logits_of(model, tokens())


def test_a_kernel_that_keeps_its_mask_to_itself_is_refused() -> None:
    model = FAMILIES["Llama"]()
    model.config._attn_implementation_internal = "flash_attention_2"
    host = host_for(model)
    with pytest.raises(SiteUnavailableError, match=r"set_attn_implementation\('sdpa'\)"):
        methods.soft_temp.install(host)
    assert model.config._attn_implementation == "flash_attention_2"
    assert not any(name.startswith("trimtab") for one in model.modules() for name in one._modules)


def test_a_registered_host_is_found() -> None:
    class Mine(nn.Module):
        pass

    class MyHost(GPTHost):
        @classmethod
        def fits(cls, model: nn.Module) -> bool:
            return isinstance(model, Mine)

    with pytest.raises(UnknownFamilyError):
        host_for(Mine())
    try:
        assert register(MyHost) is MyHost
        register(MyHost)
        assert type(host_for(Mine())) is MyHost
    finally:
        _REGISTERED.clear()
