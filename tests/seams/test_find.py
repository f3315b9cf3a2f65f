"""Attention of models without a host: found by reading code, read exactly, and inert."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from tests.seams import early_names
from tests.seams.early_names import fused, kernels
from trimtab import probes, watch
from trimtab.seams import find_attentions
from trimtab.testing.families import hugging_face
from trimtab.watching import WatchError

WIDTH, HEADS, GROUPS, LENGTH = 32, 4, 2, 12
BOTH = probes.named("max_logit", "entropy")


class Projecting(nn.Module):
    """Grouped queries, keys and values; a subclass says by which function attention is computed."""

    def __init__(self, window: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.window = window
        self.dropout = dropout
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, WIDTH // 2)
        self.v = nn.Linear(WIDTH, WIDTH // 2)
        self.out = nn.Linear(WIDTH, WIDTH)

    def mask(self, length: int) -> Tensor | None:
        if self.window is None:
            return None
        behind = torch.arange(length)[:, None] - torch.arange(length)
        return (behind >= 0) & (behind < self.window)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (GROUPS, -1)).transpose(1, 2) for f in (self.k, self.v))
        return q, k, v

    def close(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(2))


class Named(Projecting):
    @override
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        mask = self.mask(x.shape[1])
        dropout = self.dropout if self.training else 0.0
        return self.close(
            F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, enable_gqa=True)
        )


class Early(Projecting):
    @override
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        mask = self.mask(x.shape[1])
        return self.close(fused(q, k, v, mask, is_causal=mask is None, enable_gqa=True))


class Namespaced(Projecting):
    @override
    def forward(self, x: Tensor) -> Tensor:
        return self._attend(x)

    def _attend(self, x: Tensor) -> Tensor:
        return self.close(kernels.attention(*self.heads(x), self.mask(x.shape[1])))


class Flexible(Projecting):
    @override
    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask

        q, k, v = self.heads(x)
        window = self.window or LENGTH

        def near(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
            return (row >= key) & (row - key < window)

        block = create_block_mask(near, None, None, x.shape[1], x.shape[1], device="cpu")
        return self.close(early_names.flexible(q, k, v, block_mask=block, enable_gqa=True))


def capped_with_slopes(score: Tensor, b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
    """A cap that changes every score otherwise, and a bias of each head by distance."""
    return 2 * torch.tanh(score / 2) - 0.1 * (h + 1) * (row - key)


def hides_the_future(score: Tensor, b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
    return torch.where(row >= key, score * (1 + h), -math.inf)


class Modified(Projecting):
    def __init__(self, score_mod: Callable[..., Tensor], masked: bool) -> None:
        super().__init__()
        self.score_mod = score_mod
        self.masked = masked

    @override
    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask

        def past(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
            return row >= key

        block = create_block_mask(past, None, None, x.shape[1], x.shape[1], device="cpu") if self.masked else None
        return self.close(early_names.flexible(*self.heads(x), self.score_mod, block, enable_gqa=True))


class Explicit(Projecting):
    flash = False

    @override
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return self.close(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))


class Residual(nn.Module):
    """Blocks that add attention; ``checkpointed`` recomputes them in backward."""

    def __init__(self, make: Callable[[], nn.Module], checkpointed: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make() for _ in range(2))
        self.checkpointed = checkpointed

    @override
    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x))
        return x


class Multihead(nn.Module):
    def __init__(self, *, batch_first: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, dropout=dropout)

    @override
    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        y = x if self.batch_first else x.transpose(0, 1)
        out, _ = self.mha(y, y, y, attn_mask=hidden, need_weights=False)
        return out if self.batch_first else out.transpose(0, 1)


def inputs(seed: int = 1) -> Tensor:
    return 3 * torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))


def sharp(model: nn.Module) -> nn.Module:
    """Weights as large as training makes them: attention that looks at few keys."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("q.weight", "k.weight", "in_proj_weight")):
                p.mul_(3)
    return model


def unchanged(score: Tensor, *_: object) -> Tensor:
    return score


def in_double(
    q: Tensor, k: Tensor, visible: Tensor, score_mod: Callable[..., Tensor] = unchanged
) -> tuple[list[float], list[float]]:
    """Largest score and mean entropy of each head, by loops over rows."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    largest: list[float] = []
    entropies: list[float] = []
    for head in range(q.shape[1]):
        best, found = -math.inf, []
        for sequence in range(q.shape[0]):
            for row in range(q.shape[2]):
                keys = visible[row].nonzero().flatten()
                scores = k[sequence, head, keys] @ q[sequence, head, row] / math.sqrt(q.shape[-1])
                scores = score_mod(scores, torch.tensor(sequence), torch.tensor(head), torch.tensor(row), keys)
                best = max(best, float(scores.max()))
                p = scores.softmax(0)
                if len(keys) > 1:
                    found.append(-math.fsum(v * math.log(v) for v in p.tolist() if v > 0))
        largest.append(best)
        entropies.append(math.fsum(found) / len(found))
    return largest, entropies


def causal(window: int | None = None) -> Tensor:
    behind = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    return (behind >= 0) & (behind < (window or LENGTH))


def assert_exact(
    row: dict[str, float],
    path: str,
    q: Tensor,
    k: Tensor,
    visible: Tensor,
    score_mod: Callable[..., Tensor] = unchanged,
) -> None:
    largest, entropies = in_double(q, k, visible, score_mod)
    for head in range(q.shape[1]):
        assert row[f"attention/{path}.head.{head}/max_logit"] == pytest.approx(largest[head], rel=1e-5)
        assert row[f"attention/{path}.head.{head}/entropy"] == pytest.approx(entropies[head], rel=1e-5, abs=1e-7)
    assert f"attention/{path}.head.{q.shape[1]}/entropy" not in row


def assert_read_exactly(model: Any, visible: Tensor, score_mod: Callable[..., Tensor] = unchanged) -> None:
    """The readings of every block, and the bits of the model with a watch and after it."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flex_attention without compilation
        plain = model(inputs())
        with watch(model, BOTH, exact=True) as watching:
            assert torch.equal(model(inputs()), plain)
            row = watching.read()
        assert torch.equal(model(inputs()), plain)
        x = inputs()
        for layer, block in enumerate(model.blocks):
            assert isinstance(block, Projecting)
            q, k, _ = block.heads(x)
            assert_exact(row, f"blocks.{layer}", q, k, visible, score_mod)
            x = x + block(x)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kind", [Named, Early, Namespaced, Flexible])
def test_attention_is_found_and_read_exactly_however_its_function_is_named(
    kind: type[Projecting], window: int | None
) -> None:
    torch.manual_seed(0)
    model = sharp(Residual(lambda: kind(window)))
    assert [name for name, _ in find_attentions(model).readable] == ["blocks.0", "blocks.1"]
    assert_read_exactly(model, causal(window))
    assert not any("forward" in vars(module) for module in model.modules())
    assert early_names.flexible.__name__ == "flex_attention"


@pytest.mark.parametrize(("score_mod", "masked"), [(capped_with_slopes, True), (hides_the_future, False)])
def test_what_a_score_mod_makes_of_the_scores_is_read(score_mod: Callable[..., Tensor], masked: bool) -> None:
    torch.manual_seed(0)
    model = sharp(Residual(lambda: Modified(score_mod, masked)))
    assert_read_exactly(model, causal(), score_mod)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_multihead_attention_is_read_from_its_inputs_and_keeps_its_fused_path(batch_first: bool, mode: str) -> None:
    torch.manual_seed(0)
    model = sharp(Multihead(batch_first=batch_first)).train(mode == "train")
    with torch.set_grad_enabled(mode != "no_grad"):
        plain = model(inputs())
        with watch(model, BOTH, exact=True) as watching:
            assert torch.equal(model(inputs()), plain)
            row = watching.read()
    mha = model.mha
    assert isinstance(mha, nn.MultiheadAttention)
    q, k, _ = F.linear(inputs(), mha.in_proj_weight, mha.in_proj_bias).detach().chunk(3, -1)
    q, k = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k))
    assert_exact(row, "mha", q, k, causal())


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_model_of_the_registry_reads_by_module_as_by_host(model_type: str) -> None:
    pytest.importorskip("transformers")
    from trimtab import host_for

    model: Any = hugging_face(model_type).eval()
    ids = torch.arange(12)[None]
    rows: list[dict[str, float]] = []
    for subject in (host_for(model), model):
        with watch(subject, BOTH) as watching:
            model(ids)
            rows.append(watching.read())
    of_host, of_module = ([v for k, v in row.items() if k.startswith("attention")] for row in rows)
    assert of_host == of_module
    assert len(of_host) > 10


@pytest.mark.parametrize("base", ["eager", "sdpa"])
def test_attention_that_hides_no_later_key_is_read_so(base: str) -> None:
    """An encoder, with padding known by its mask."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=HEADS, intermediate_size=WIDTH, vocab_size=64
    )
    model = transformers.BertModel(config).eval()
    model.set_attn_implementation(base)
    sharp(model)
    inner = model.encoder.layer[0].attention.self
    seen: dict[str, Tensor] = {}
    for part in ("query", "key"):
        getattr(inner, part).register_forward_hook(lambda _, args, y, part=part: seen.__setitem__(part, y.detach()))
    ids = torch.arange(1, LENGTH + 1)[None]
    with watch(model, BOTH, exact=True) as watching:
        model(ids)
        row = watching.read()
    q, k = (seen[part].unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in ("query", "key"))
    everything = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    assert_exact(row, "encoder.layer.0.attention.self", q, k, everything)


KINDS: dict[str, Callable[[bool], nn.Module]] = {
    "named": lambda checkpointed: Residual(lambda: Named(5, dropout=0.1), checkpointed),
    "early": lambda checkpointed: Residual(Early, checkpointed),
    "namespaced": lambda checkpointed: Residual(Namespaced, checkpointed),
    "multihead": lambda checkpointed: Residual(lambda: Multihead(dropout=0.1), checkpointed),
}


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
@pytest.mark.parametrize("run", ["eager", "compile", "checkpoint"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_watched_model_keeps_its_bits(kind: str, run: str, mode: str) -> None:
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    torch.manual_seed(0)
    plain = sharp(KINDS[kind](run == "checkpoint")).train(mode == "train")
    watched = copy.deepcopy(plain)
    results: list[tuple[Tensor, ...]] = []
    rows: list[dict[str, float]] = []
    for model in (plain, watched):
        watching = watch(model, BOTH, exact=True) if model is watched else None
        torch.compiler.reset()
        called = torch.compile(model, backend="aot_eager", fullgraph=True) if run == "compile" else model
        for seed in range(2):
            torch.manual_seed(seed)
            model.zero_grad()
            with torch.set_grad_enabled(mode != "no_grad"):
                out = called(inputs(seed))
            if mode != "no_grad":
                out.square().mean().backward()
            gradients = tuple(p.grad.clone() for p in model.parameters() if p.grad is not None)
            results.append((out.detach(), *gradients))
            if watching is not None:
                rows.append(watching.read())
    half = len(results) // 2
    for alone, beside in zip(results[:half], results[half:], strict=True):
        assert len(alone) == len(beside) == (1 if mode == "no_grad" else 1 + len(list(plain.parameters())))
        assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))
    assert all(len(row) == len(rows[0]) > 2 * HEADS * 3 for row in rows)
    assert rows[0] != rows[1]


def test_inductor_keeps_the_bits_too() -> None:
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    torch.manual_seed(0)
    plain = sharp(Residual(Named))
    watched = copy.deepcopy(plain)
    outputs: list[Tensor] = []
    with watch(watched, BOTH, exact=True) as watching:
        for model in (plain, watched):
            torch.compiler.reset()
            outputs.append(torch.compile(model, fullgraph=True)(inputs()))
        row = watching.read()
    assert torch.equal(*outputs)
    assert len([key for key in row if key.endswith("/max_logit")]) == 2 * HEADS


def test_heads_in_the_batch_are_read_as_one_head() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(WIDTH, WIDTH)

        @override
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.q(x), x, x, is_causal=True)

    torch.manual_seed(0)
    model = nn.Sequential(Flat())
    with watch(model, BOTH, exact=True) as watching:
        plain = model(inputs())
        row = watching.read()
    assert torch.equal(model(inputs()), plain)
    assert_exact(row, "0", model[0].q(inputs()).detach()[:, None], inputs()[:, None], causal())


def test_attention_that_cannot_be_read_is_named_or_refused() -> None:
    model = nn.Sequential(Explicit())
    with pytest.raises(WatchError, match="'max_logit'"):
        watch(model, probes.named("max_logit"))
    with pytest.warns(UserWarning, match=r"no .*max_logit.* is read of 0: computes attention explicitly"):
        watch(model, probes.standard).remove()
    replaced = nn.Sequential(Named())
    replaced[0].forward = replaced[0].forward  # as libraries that move weights between devices do
    with pytest.warns(UserWarning, match="its forward was replaced"):
        watch(replaced, probes.standard).remove()


def test_a_function_of_sequences_of_unequal_length_is_refused_by_its_name() -> None:
    def varlen_attn(q: Tensor) -> Tensor:
        return q

    varlen_attn.__module__ = "torch.nn.attention.varlen"

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(WIDTH, WIDTH)

        @override
        def forward(self, x: Tensor) -> Tensor:
            return varlen_attn(self.q(x))

    # The name is one of a closure here, as it is of a module elsewhere.
    assert find_attentions(nn.Sequential(Packed())).others == ["0: attention through varlen_attn is not read"]


def test_a_model_without_attention_is_searched_in_vain() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert not find_attentions(model).readable
    with pytest.raises(WatchError, match="no attention"):
        watch(model, probes.named("entropy"))


def test_attention_that_was_found_and_does_not_happen_is_named_once() -> None:
    class Sometimes(Projecting):
        @override
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return self.out(x)
            q, k, v = self.heads(x)
            return self.close(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))

    model = nn.Sequential(Sometimes())
    with watch(model, BOTH) as watching:
        model(inputs())
        with pytest.warns(UserWarning, match="no attention passed attention/0"):
            watching.read()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(inputs())
            watching.read()
        model.eval()(inputs())
        assert "attention/0.head.0/entropy" in watching.read()
