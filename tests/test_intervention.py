"""Edits that hear earlier layers: they are told before their turn, and what cannot be heard is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from trimtab import GPT, GPTConfig, host_for
from trimtab.host import Host, Site, SiteUnavailableError, Slot, Tap
from trimtab.intervention import ModelEdit, Source
from trimtab.method import Method, install, installed_in
from trimtab.testing import MethodContract
from trimtab.testing.families import FAMILIES

SOURCE = Source(title="none", arxiv="", place="", equation="")
CONFIG = GPTConfig(
    vocab_size=64, context=16, num_layers=2, num_heads=2, width=16, positions="rotary", tied=False, norm="rms_norm"
)


def make_model(config: GPTConfig = CONFIG) -> GPT:
    torch.manual_seed(7)
    return GPT(config)


def tokens() -> Tensor:
    return torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))


def loss_of(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(tokens()[:, :-1]).flatten(0, 1), tokens()[:, 1:].flatten())


class _Residual(nn.Module):
    """Mixes the values of a layer with those of the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.25))
        self._first: Tensor | None = None

    def hear(self, x: Tensor) -> None:
        self._first = x

    @override
    def forward(self, v_BHTK: Tensor) -> Tensor:
        assert self._first is not None, "the values of the first layer were not told"
        first_BHTK = self._first
        self._first = None
        return v_BHTK + self.share * (first_BHTK - v_BHTK)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ValueResidual(ModelEdit):
    """Values of every later layer are mixed with those of the first (arXiv 2410.17897)."""

    heard_layer: int = 0
    heard_site: Site = Site.VALUE
    source: ClassVar[Source] = SOURCE
    sites = (Site.VALUE,)

    @override
    def places_heard(self, tap: Tap) -> Sequence[tuple[Site, int | None]]:
        return [] if tap.layer == 0 else [(self.heard_site, self.heard_layer)]

    @override
    def edit(self, tap: Tap) -> nn.Module | None:
        return None if tap.layer == 0 else _Residual()


def test_an_edit_mixes_the_values_of_its_layer_with_those_of_the_first() -> None:
    model = make_model()
    install([ValueResidual()], host_for(model))
    passed: list[tuple[Tensor, Tensor]] = []
    for tap in host_for(model).taps(Site.VALUE):
        tap.slot.watch(lambda before, after: passed.append((before, after)))
    model(tokens())
    (first, first_after), (second, second_after) = passed
    assert torch.equal(first, first_after)
    assert torch.allclose(second_after, 0.75 * second + 0.25 * first, atol=1e-7)


def test_gradients_reach_the_first_layer_through_what_a_later_layer_heard() -> None:
    def gradient(*, cut: bool) -> Tensor:
        model = make_model()
        install([ValueResidual()], host_for(model))
        slot = host_for(model).taps(Site.VALUE)[0].slot
        if cut:
            listener = slot.listeners[0]
            slot.listeners[:] = [type("Cut", (), {"hear": lambda self, x: listener.hear(x.detach())})()]
        loss_of(model).backward()
        return model.blocks[0].attn.qkv.weight.grad[32:]

    assert not torch.allclose(gradient(cut=False), gradient(cut=True))


@pytest.mark.parametrize("layer", [1, 2])
def test_an_edit_that_would_hear_its_own_or_a_later_layer_is_refused_and_nothing_is_put_in(layer: int) -> None:
    model = make_model(replace(CONFIG, num_layers=3))
    with pytest.raises(ValueError, match="'value' of layer 1 cannot hear 'value' of layer"):
        install([ValueResidual(heard_layer=layer)], host_for(model))
    assert installed_in(model) == ()
    assert not any(module.listeners for module in model.modules() if isinstance(module, Slot))


def test_an_edit_that_would_hear_a_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SiteUnavailableError, match="no site 'value' in layer 7"):
        install([ValueResidual(heard_layer=7)], host_for(make_model()))


def test_an_edit_that_leaves_every_tap_alone_is_refused() -> None:
    with pytest.raises(
        SiteUnavailableError, match="value_residual has nothing to edit in this trimtab GPT of 1 layers"
    ):
        install([ValueResidual()], host_for(make_model(replace(CONFIG, num_layers=1))))


def test_scores_that_are_only_heard_are_built_nevertheless() -> None:
    """The fused kernel has no scores to tell of."""
    model = make_model()
    slots = [tap.slot for tap in host_for(model).taps(Site.SCORES)]
    heard: list[Tensor] = []
    slots[0].listen(type("Ear", (), {"hear": lambda self, x: heard.append(x)})())
    model(tokens())
    assert [tuple(x.shape) for x in heard] == [(2, 2, 16, 16)]


def contract_of(make_host: Callable[[], Host]) -> type[MethodContract]:
    class Contract(MethodContract):
        @override
        def make_method(self) -> Method:
            return Method("value_residual", (ValueResidual(),), SOURCE)

        @override
        def make_host(self) -> Host:
            return make_host()

    return Contract


TestValueResidual = contract_of(lambda: host_for(make_model()))
TestValueResidualInLlama = contract_of(lambda: host_for(FAMILIES["Llama"]()))
TestValueResidualInGPT2 = contract_of(lambda: host_for(FAMILIES["GPT-2"]()))
