"""Probes in compiled models: one graph for ever, the numbers of eager mode, and not a bit changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
import torch._inductor.config as inductor
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimtab import GPT, GPTConfig, host_for, methods, probes, watch
from trimtab.probe import Preset
from trimtab.testing.families import FAMILIES, VOCABULARY, hugging_face, logits_of
from trimtab.watching import EmptyReadingError, Watch


@pytest.fixture(autouse=True)
def _fresh():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, inductor's own embedding backward differs from run to run
    torch.compiler.reset()
    dynamo.utils.counters.clear()
    yield
    torch.set_num_threads(threads)


def trained(
    build: Callable[[], nn.Module], preset: Preset | None, backend: str | None, steps: int = 3, **settings: Any
) -> tuple[nn.Module, Watch | None]:
    torch.compiler.reset()
    model = build()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watching = None if preset is None else watch(host_for(model), preset, optimizer=optimizer, **settings)
    called: Any = model if backend is None else torch.compile(model, fullgraph=True, backend=backend)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        tokens = torch.randint(0, VOCABULARY, (2, 17), generator=generator)
        loss_of(called, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    if watching is not None:
        watching.remove()
    return model, watching


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits_of(model, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


EVERY_TIME = ("trimtab GPT", "Llama")  # a graph takes seconds; the other families' are made every night


def small() -> nn.Module:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=VOCABULARY, width=16, num_layers=1, num_heads=2, context=16))


@pytest.mark.parametrize(
    "family", [pytest.param(each, marks=() if each in EVERY_TIME else pytest.mark.nightly) for each in FAMILIES]
)
def test_a_compiled_model_of_any_family_keeps_its_bits_and_gives_the_readings_of_eager_mode(family: str) -> None:
    build = FAMILIES[family]
    plain, _ = trained(build, None, "aot_eager", steps=2)
    watched, compiled = trained(build, probes.standard, "aot_eager", steps=2, every=2)
    _, eager = trained(build, probes.standard, None, steps=2, every=2)
    assert compiled is not None
    assert eager is not None
    for mine, other in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert compiled.traced
    assert compiled.last.keys() == eager.last.keys()
    for key, value in eager.last.items():
        assert compiled.last[key] == pytest.approx(value, rel=1e-3, abs=1e-7), key


@pytest.mark.nightly  # two graphs of inductor; tests/seams makes a smaller one every time
@pytest.mark.parametrize("preset", [probes.cheap, probes.full], ids=["cheap", "full"])
def test_inductor_keeps_the_bits_too(preset: Preset) -> None:
    plain, _ = trained(small, None, "inductor")
    watched, watching = trained(small, preset, "inductor", every=2)
    assert watching is not None
    assert watching.traced
    assert watching.last["step"] == 2
    for mine, other in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("family", ["olmo2", "gemma2"])
def test_inductor_keeps_the_bits_of_rotary_models_where_it_always_vectorises(family: str) -> None:
    """Left to choose, it vectorises a watched kernel and not the same one unwatched, and their sines differ."""

    def build() -> nn.Module:
        return hugging_face(family, num_hidden_layers=1)

    with inductor.patch({"cpp.enable_tiling_heuristics": False}):
        plain, _ = trained(build, None, "inductor", steps=2)
        watched, watching = trained(build, probes.standard, "inductor", steps=2, every=2)
    assert watching is not None
    assert watching.traced
    assert watching.last["step"] == 2
    for mine, other in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_there_is_no_break_and_no_second_graph_whatever_the_cadence() -> None:
    model = small()
    methods.qk_norm_cap.install(host_for(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watching = watch(host_for(model), probes.full, optimizer=optimizer, every=2)
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    seen: list[float] = []
    with dynamo.config.patch(error_on_recompile=True):
        for step in range(9):
            if step == 4:
                watching.every = 3
            loss_of(compiled, torch.zeros(2, 17, dtype=torch.long)).backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(watching.last["step"])
    assert seen == [1, 2, 2, 4, 4, 6, 6, 6, 9]
    assert not dynamo.utils.counters["graph_break"]
    assert not dynamo.utils.counters["recompiles"]


def test_attaching_after_the_graph_was_made_is_an_error_that_says_so() -> None:
    model = small()
    compiled: Any = torch.compile(model, backend="aot_eager")
    tokens = torch.zeros(2, 17, dtype=torch.long)
    loss_of(compiled, tokens).backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watching = watch(host_for(model), probes.cheap, optimizer=optimizer)  # the model inside: nothing to see on it
    loss_of(compiled, tokens).backward()
    with pytest.raises(EmptyReadingError, match="Attach first, then torch"):
        optimizer.step()
    watching.remove()


def test_another_model_of_the_class_does_not_report_into_the_watch() -> None:
    first, second = small(), small()
    optimizer = torch.optim.AdamW(first.parameters(), lr=0.0, weight_decay=0.0)
    watching = watch(host_for(first), probes.standard, optimizer=optimizer, every=1)
    one: Any = torch.compile(first, fullgraph=True, backend="aot_eager")
    other: Any = torch.compile(second, fullgraph=True, backend="aot_eager")
    rows = []
    for with_other in (False, True):
        if with_other:
            loss_of(other, torch.full((2, 17), 5)).backward()
        loss_of(one, torch.zeros(2, 17, dtype=torch.long)).backward()
        if with_other:
            loss_of(other, torch.full((2, 17), 7)).backward()
        optimizer.step()
        optimizer.zero_grad()
        rows.append({key: value for key, value in watching.last.items() if "_weight" not in key and key != "step"})
    assert rows[0].keys() == rows[1].keys()
    for key, value in rows[0].items():
        if "update" not in key and "below_eps" not in key:
            assert rows[1][key] == value, key


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_what_is_recomputed_in_backward_is_not_counted_again(backend: str | None) -> None:
    class Recomputing(GPT):
        def forward(self, tokens_BT: Tensor) -> Tensor:
            x = self.token_embedding(tokens_BT)
            for block in self.blocks:
                x = checkpoint(block, x, None, use_reentrant=False)
            return self.head(self.final_norm(x))

    class Plain(GPT):
        def forward(self, tokens_BT: Tensor) -> Tensor:
            x = self.token_embedding(tokens_BT)
            for block in self.blocks:
                x = block(x, None)
            return self.head(self.final_norm(x))

    def of(kind: type[GPT]) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            torch.manual_seed(0)
            config = GPTConfig(vocab_size=VOCABULARY, width=16, num_layers=2, num_heads=2, context=16, tied=False)
            return kind(config)

        return build

    _, again = trained(of(Recomputing), probes.standard, backend, steps=2, every=1)
    _, once = trained(of(Plain), probes.standard, None, steps=2, every=1)
    assert again is not None
    assert once is not None
    assert again.last.keys() == once.last.keys()
    for key, value in once.last.items():
        assert again.last[key] == pytest.approx(value, rel=1e-3, abs=1e-7), key
