"""What is done to a watched model by mistake or in passing ends in a clear error or in a right reading."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimtab import GPT, GPTConfig, Watch, host_for, probes, watch
from trimtab.probe import (
    AdamProbe,
    AttentionProbe,
    GradientNoiseProbe,
    LogitProbe,
    MatrixProbe,
    Preset,
    Probe,
    TableProbe,
    TensorProbe,
    UpdateProbe,
)  # fmt: skip
from trimtab.testing.families import hugging_face
from trimtab.watching import EmptyReadingError, NoMatchError, WatchError

CONFIG = GPTConfig(vocab_size=32, context=8, num_layers=2, num_heads=2, width=16, init_std=0.2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterable[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(config: GPTConfig = CONFIG) -> GPT:
    torch.manual_seed(3)
    return GPT(config)


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    ids = tokens(seed)
    return F.cross_entropy(model(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def train(model: nn.Module, opt: torch.optim.Optimizer, seed: int = 0) -> None:
    loss_of(model, seed).backward()
    opt.step()
    opt.zero_grad()


def attach(model: nn.Module, opt: torch.optim.Optimizer | None, preset: Preset = probes.standard, **kw: Any) -> Watch:
    return watch(host_for(model), preset, optimizer=opt, **({"every": 1, "exact": True} | kw))


def rows_of(steps: int = 2, preset: Preset = probes.full, change: Callable[[GPT], Any] = lambda _: None) -> list[dict]:
    """The rows of an undisturbed run."""
    model = make()
    change(model)
    opt = adamw(model)
    w = attach(model, opt, preset)
    found = []
    for seed in range(steps):
        train(model, opt, seed)
        found.append(w.last)
    return found


def assert_same_row(row: dict[str, float], expected: dict[str, float], rel: float = 0.0) -> None:
    assert list(row) == list(expected)
    found = {key: (row[key], expected[key]) for key in row}
    different = {
        key: pair for key, pair in found.items() if pair[0] != pytest.approx(pair[1], rel=rel, abs=0.0, nan_ok=True)
    }
    assert not different, f"{len(different)} differ: {dict(list(different.items())[:4])}"


def hooks_in(model: nn.Module, opt: torch.optim.Optimizer | None = None) -> list[str]:
    """Everything that somebody hung onto a model or an optimizer."""
    found: list[str] = []
    for name, module in model.named_modules():
        for table in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            found += [f"{name}.{table}"] * len(getattr(module, table))
        for table in ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"):
            found += [f"{name}.{table}"] * len(getattr(module, table))
        found += [f"{name}.watchers"] * len(module.__dict__.get("watchers", ()))
        found += [
            f"{name}.{key}"
            for key in (*module.__dict__, *module._modules)
            if key.startswith(("trimtab_", "_trimtab_w"))
        ]
    for name, p in model.named_parameters():
        found += [f"{name}.hooks"] * len(p._backward_hooks or ())
        found += [f"{name}.post"] * len(getattr(p, "_post_accumulate_grad_hooks", None) or ())
    if opt is not None:
        found += ["optimizer"] * (len(opt._optimizer_step_pre_hooks) + len(opt._optimizer_step_post_hooks))
    return found


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


# Refusals.


def test_the_result_of_torch_compile_is_refused() -> None:
    model = make()
    host = host_for(model)
    host.model = torch.compile(model, backend="aot_eager")  # type: ignore[assignment]
    with pytest.raises(WatchError, match=r"compiled already.*then torch\.compile"):
        watch(host, probes.standard)
    with pytest.raises(WatchError, match="compiled already"):
        watch(torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="aot_eager"), probes.standard)  # type: ignore[arg-type]
    assert hooks_in(model) == []


def test_a_module_compiled_in_place_is_refused() -> None:
    model = make()
    model.compile(backend="aot_eager")
    opt = adamw(model)
    with pytest.raises(WatchError, match="the model is compiled already"):
        attach(model, opt)
    assert hooks_in(model, opt) == []


def test_a_compiled_part_is_refused_by_name() -> None:
    model = make()
    model.blocks[1].compile(backend="aot_eager")
    with pytest.raises(WatchError, match=r"blocks\.1"):
        attach(model, None)
    assert hooks_in(model) == []


@pytest.mark.parametrize(
    ("pattern", "near"), [("qkv_outputs/layer.*", "qkv_output/layer.0"), ("residuals/layer.1", "residual/layer.1")]
)
def test_a_pattern_without_a_match_names_near_ones(pattern: str, near: str) -> None:
    model = make()
    opt = adamw(model)
    with pytest.raises(NoMatchError) as raised:
        attach(model, opt, only=["logits/*", pattern])
    assert pattern in str(raised.value)
    assert near in str(raised.value)
    assert hooks_in(model, opt) == []


def test_a_pattern_without_a_match_names_near_modules() -> None:
    model = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "k_proj": nn.Linear(2, 2)})
    with pytest.raises(NoMatchError, match="q_proj"):
        watch(model, probes.cheap, only=["q_porj"])
    assert hooks_in(model) == []


def test_a_module_without_weights_is_refused() -> None:
    with pytest.raises(WatchError, match="nothing to watch"):
        watch(nn.Sequential(nn.ReLU()), probes.cheap)


@pytest.mark.parametrize("every", [0, -1])
def test_a_cadence_below_one_is_refused(every: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        attach(make(), None, every=every)


def test_reading_by_hand_is_refused_where_an_optimizer_reads() -> None:
    model = make()
    w = attach(model, adamw(model))
    loss_of(model).backward()
    with pytest.raises(WatchError, match=r"\.last"):
        w.read()


@pytest.mark.parametrize("pattern", ["attention/*", "q_weight/*"])
def test_attention_or_matrices_may_be_watched_alone(pattern: str) -> None:
    model = make()
    opt = adamw(model)
    w = attach(model, opt, probes.full, only=[pattern])
    train(model, opt)
    place = "attention/layer.0.head.0/entropy" if pattern == "attention/*" else "q_weight/layer.0/spectral_norm"
    assert w.last[place] == rows_of(1)[0][place]
    w.remove()
    assert hooks_in(model, opt) == []


# Nothing passed.


def test_a_step_without_a_forward_pass_is_an_empty_reading() -> None:
    model = make()
    opt = adamw(model)
    attach(model, opt)
    with torch.no_grad():
        loss_of(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(EmptyReadingError, match="no tensor passed"):
        opt.step()


def test_a_model_called_by_another_forward_is_an_empty_reading() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    model = Wrapped()
    opt = adamw(model)
    watch(model, probes.cheap, optimizer=opt)
    model.body(torch.ones(1, 2)).sum().backward()
    with pytest.raises(EmptyReadingError, match="own forward"):
        opt.step()


def test_reading_by_hand_without_a_forward_pass_is_an_empty_reading() -> None:
    model = make()
    w = attach(model, None)
    with pytest.raises(EmptyReadingError):
        w.read()


def test_the_reading_after_an_empty_one_by_hand_is_clean() -> None:
    model = make()
    w, clean = attach(model, None, probes.full), attach(model, None, probes.full)
    with pytest.raises(EmptyReadingError):
        w.read()
    model(tokens())
    row, expected = w.read(), clean.read()
    names = [key for key in expected if not key.endswith(("spectral_norm", "stable_rank", "step"))]
    assert_same_row({k: row[k] for k in names}, {k: expected[k] for k in names})


def test_the_reading_after_an_empty_one_at_a_step_is_clean() -> None:
    model = make()
    opt = adamw(model)
    w = attach(model, opt, probes.cheap)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(EmptyReadingError):
        opt.step()
    opt.zero_grad()
    loss_of(model).backward()
    total = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters() if p.grad is not None))
    opt.step()
    weight = model.blocks[0].attn.qkv.weight.detach().double().norm().item()
    assert w.last["qkv_weight/layer.0/l2_norm"] == pytest.approx(weight, rel=1e-6)
    assert w.last["all_grad/model/l2_norm"] == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("only", [(), ("logits/*",)])
def test_logits_that_are_all_nan_are_counted_and_are_no_empty_reading(only: Sequence[str]) -> None:
    model = make(replace(CONFIG, tied=False))
    with torch.no_grad():
        model.final_norm.bias.fill_(math.nan)
    opt = adamw(model)
    w = attach(model, opt, probes.cheap, only=only)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, opt)
    assert w.last["logits/model/non_finite"] == 2 * 7 * 32


# What counts and what does not.


def test_a_model_in_eval_mode_that_is_trained_is_read() -> None:
    expected = rows_of()
    for row, other in zip(rows_of(change=lambda model: model.eval()), expected, strict=True):
        assert_same_row(row, other)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("place", ["before forward", "before step"])
def test_evaluation_between_steps_does_not_count(context: Callable[[], Any], place: str) -> None:
    expected = rows_of()
    model = make()
    opt = adamw(model)
    w = attach(model, opt, probes.full)

    def evaluate() -> None:
        model.eval()
        with context():
            for seed in range(10, 13):
                loss_of(model, seed)
        model.train()

    for seed in range(2):
        if place == "before forward":
            evaluate()
        loss = loss_of(model, seed)
        loss.backward()
        if place == "before step":
            evaluate()
        opt.step()
        opt.zero_grad()
        assert_same_row(w.last, expected[seed])


def test_steps_are_read_at_the_first_and_at_every_third() -> None:
    model = make()
    opt = adamw(model)
    w = attach(model, opt, probes.cheap, every=3)
    read = []
    for seed in range(7):
        train(model, opt, seed)
        read.append(w.last["step"])
    assert read == [1, 1, 3, 3, 3, 6, 6]


def test_a_reading_every_third_step_equals_that_of_every_step() -> None:
    expected = rows_of(6)
    model = make()
    opt = adamw(model)
    w = attach(model, opt, probes.full, every=3)
    for seed in range(6):
        train(model, opt, seed)
    names = [key for key in expected[5] if not key.endswith(("spectral_norm", "stable_rank"))]
    assert_same_row({k: w.last[k] for k in names}, {k: expected[5][k] for k in names})


def test_two_watches_agree_and_leave_nothing() -> None:
    expected = rows_of(3)
    model = make()
    opt = adamw(model)
    one, other = attach(model, opt, probes.full), attach(model, opt, probes.full)
    for seed in range(2):
        train(model, opt, seed)
        assert_same_row(one.last, expected[seed])
        assert_same_row(other.last, expected[seed])
    one.remove()
    train(model, opt, 2)
    assert one.last["step"] == 2
    assert_same_row(other.last, expected[2])
    other.remove()
    assert hooks_in(model, opt) == []


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_changes_its_dtype_after_attaching_is_read(dtype: torch.dtype, steps_before: int) -> None:
    model = make()
    opt = adamw(model)
    w = attach(model, opt, probes.full)
    for seed in range(steps_before):
        train(model, opt, seed)
    model.to(dtype)
    opt.state.clear()
    fresh = copy.deepcopy(model)
    fresh_opt = adamw(fresh)
    for module in fresh.modules():  # the copy's own hooks report nowhere, but let it be bare
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module._forward_pre_hooks_with_kwargs.clear()
        if hasattr(module, "watchers"):
            module.watchers.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, opt, 5)
        clean = attach(fresh, fresh_opt, probes.full)
        train(fresh, fresh_opt, 5)
    names = [key for key in clean.last if not key.endswith(("spectral_norm", "stable_rank", "step"))]
    assert set(w.last) == set(clean.last)
    assert_same_row({k: w.last[k] for k in names}, {k: clean.last[k] for k in names}, 1e-6)


def test_a_model_of_mixed_dtypes_is_read() -> None:
    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.bfloat16()

    model = nn.Sequential(nn.Linear(4, 4), Cast(), nn.Linear(4, 4).bfloat16())
    opt = adamw(model)
    w = watch(model, probes.full, optimizer=opt, every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            model(torch.ones(2, 4)).float().square().sum().backward()
            gradient = model[2].weight.grad.double().norm().item()
            opt.step()
            opt.zero_grad()
            assert w.last["weight_grad/2/l2_norm"] == pytest.approx(gradient, rel=1e-3)


@pytest.mark.parametrize("moment", ["before forward", "between forward and backward", "before step"])
def test_a_copy_of_an_armed_model_does_not_report_into_the_watch(moment: str) -> None:
    expected = rows_of()
    model = make()
    opt = adamw(model)
    w = attach(model, opt, probes.full)

    def copied() -> None:
        twin = copy.deepcopy(model)
        loss_of(twin, 9).backward()

    for seed in range(2):
        if moment == "before forward":
            copied()
        loss = loss_of(model, seed)
        if moment == "between forward and backward":
            copied()
        loss.backward()
        if moment == "before step":
            copied()
        opt.step()
        opt.zero_grad()
        assert_same_row(w.last, expected[seed])


def test_a_part_that_is_trained_by_itself_between_forward_and_step_is_not_counted() -> None:
    expected = rows_of(1, probes.standard)[0]
    model = make()
    opt = adamw(model)
    w = attach(model, opt)
    loss_of(model).backward()
    kept = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.blocks[0].mlp(torch.ones(1, 3, 16)).sum().backward()
    for name, p in model.named_parameters():
        p.grad = kept[name]
    opt.step()
    names = [key for key in expected if key.startswith("fc")]
    assert_same_row({k: w.last[k] for k in names}, {k: expected[k] for k in names})


def test_frozen_parameters_have_no_gradient_and_no_update_and_the_rest_is_read() -> None:
    model = make()
    model.token_embedding.requires_grad_(False)
    model.position_embedding.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    w = attach(model, opt, probes.full)
    for seed in range(2):
        (loss_of(model, seed) / 2).backward()
        (loss_of(model, seed + 5) / 2).backward()
        norms = {n: p.grad.double().norm().item() for n, p in model.named_parameters() if p.grad is not None}
        opt.step()
        opt.zero_grad()
        frozen = [
            key
            for key in w.last
            if key.startswith(("qkv_weight_grad/layer.0", "qkv_weight_update/layer.0", "qkv_input_grad/layer.0"))
            or key in ("qkv_weight/layer.0/update_ratio", "embedding_weight_grad/model/l2_norm")
        ]
        assert frozen == []
        assert w.last["qkv_weight_grad/layer.1/l2_norm"] == pytest.approx(norms["blocks.1.attn.qkv.weight"], rel=1e-6)
        total = math.sqrt(sum(v * v for v in norms.values()))
        assert w.last["all_grad/model/l2_norm"] == pytest.approx(total, rel=1e-6)
        assert "qkv_weight/layer.0/l2_norm" in w.last
        assert w.last["all_grad/model/variance"] > 0
        assert "qkv_input/layer.0/rms" in w.last


def test_a_tied_head_is_the_embeddings_weight_and_is_counted_once() -> None:
    model = make()
    opt = adamw(model)
    w = attach(model, opt)
    loss_of(model).backward()
    total = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters() if p.grad is not None))
    tied = model.token_embedding.weight.grad.double().norm().item()
    opt.step()
    assert w.last["all_grad/model/l2_norm"] == pytest.approx(total, rel=1e-6)
    assert w.last["embedding_weight_grad/model/l2_norm"] == pytest.approx(tied, rel=1e-6)
    assert not [key for key in w.last if key.startswith("head_weight")]


def test_a_forward_pass_that_fails_and_is_tried_again_by_an_evaluation_counts_no_evaluation() -> None:
    model = make()
    opt = adamw(model)
    w = attach(model, opt, probes.cheap, only=["logits/*"])
    with pytest.raises(IndexError):
        model(torch.full((1, 4), 99))
    with torch.no_grad():
        model(tokens(7))
    train(model, opt)
    assert w.last["logits/model/rms"] == rows_of(1, probes.cheap)[0]["logits/model/rms"]


# Numbers that are not finite.


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_activations_are_counted_by_layer_and_the_reading_after_repair_is_clean(bad: float) -> None:
    model = make()
    w = attach(model, None, probes.full)
    with torch.no_grad():
        place = model.blocks[1].mlp.fc1.weight
        good = place[3, 5].item()
        place[3, 5] = bad
        model(tokens())
        row = w.read()
        assert row["fc1_output/layer.1/non_finite"] == 16  # one channel of 2 times 8 tokens
        assert row["fc1_weight/layer.1/non_finite"] == 1
        assert row["residual/layer.0/non_finite"] == 0
        assert row["fc1_input/layer.1/non_finite"] == 0
        assert row["fc1_output/layer.0/non_finite"] == 0
        assert row["logits/model/non_finite"] > 0
        assert math.isfinite(row["fc1_output/layer.1/rms"])
        place[3, 5] = good
        model(tokens())
        repaired = w.read()
        clean = attach(model, None, probes.full)
        model(tokens())
        expected = clean.read()
    assert [key for key, value in repaired.items() if not math.isfinite(value)] == []
    names = [key for key in expected if key != "step"]
    assert_same_row({k: repaired[k] for k in names}, {k: expected[k] for k in names}, 1e-3)


def test_a_diverged_run_goes_on_to_be_read() -> None:
    model = make()
    opt = torch.optim.SGD(model.parameters(), lr=1e30)
    w = attach(model, opt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(4):
            train(model, opt, seed)
    assert w.last["step"] == 4
    assert w.last["logits/model/non_finite"] > 0


# Recomputation.


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_are_counted_once(reentrant: bool) -> None:
    def checkpointed(model: GPT) -> None:
        for block in model.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=reentrant)  # type: ignore[method-assign]

    expected = rows_of()
    for row, other in zip(rows_of(change=checkpointed), expected, strict=True):
        assert_same_row(row, other, 1e-12)


def test_checkpointed_parts_inside_blocks_are_counted_once() -> None:
    def checkpointed(model: GPT) -> None:
        for block in model.blocks:
            for part in (block.attn, block.mlp):
                part.forward = partial(checkpoint, part.forward, use_reentrant=False)  # type: ignore[method-assign]

    for row, other in zip(rows_of(change=checkpointed), rows_of(), strict=True):
        assert_same_row(row, other, 1e-12)


@pytest.mark.parametrize("model_type", ["llama", "olmo2"])
def test_a_model_of_another_library_with_gradient_checkpointing_is_counted_once(model_type: str) -> None:
    pytest.importorskip("transformers")

    def row(again: bool) -> dict[str, float]:
        model: Any = hugging_face(model_type).train()
        if again:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        opt = adamw(model)
        w = attach(model, opt)
        logits = model(tokens()[:, :-1], use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), tokens()[:, 1:].flatten()).backward()
        opt.step()
        return w.last

    assert_same_row(row(True), row(False), 1e-6)


def test_checkpointed_calls_of_blocks_are_counted_once() -> None:
    class Recomputed(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, *args: Any) -> Any:
            return checkpoint(self.block, *args, use_reentrant=False)

    def rows(again: bool) -> list[dict[str, float]]:
        torch.manual_seed(0)
        part = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        model = nn.Sequential(Recomputed(part) if again else nn.Sequential(part), nn.Linear(4, 2))
        opt = adamw(model)
        w = watch(model, probes.standard, optimizer=opt, every=1)
        found = []
        for _ in range(2):
            model(torch.linspace(-1, 1, 8).view(2, 4)).square().sum().backward()
            opt.step()
            opt.zero_grad()
            found.append({key.replace("0.block", "0.0"): value for key, value in w.last.items()})
        return found

    for row, other in zip(rows(True), rows(False), strict=True):
        assert_same_row(row, other, 1e-12)


# Probes that raise.


def refuse(*_: Any) -> Any:
    raise ZeroDivisionError("a probe of mine")


FAULTY: dict[str, Probe] = {
    "attention": AttentionProbe(slug="mine", unit="", meaning="", cost="cheap", rows=refuse, merge="mean"),
    "logits": LogitProbe(slug="mine", unit="", meaning="", cost="cheap", rows=refuse),
    "adam": AdamProbe(slug="mine", unit="", meaning="", cost="cheap", total=refuse),
    "table": TableProbe(
        slug="mine", unit="", meaning="", cost="cheap", rows=refuse, values=lambda v: {"mine": v.mean()}
    ),
    "adam value": AdamProbe(
        slug="mine", unit="", meaning="", cost="cheap", total=lambda g, v, e: g.sum(), value=refuse
    ),
    "table value": TableProbe(slug="mine", unit="", meaning="", cost="cheap", rows=lambda t: t[:, 0], values=refuse),
    "tensor value": TensorProbe(slug="mine", unit="", meaning="", cost="cheap", value=refuse),
    "update value": UpdateProbe(slug="mine", unit="", meaning="", cost="cheap", value=refuse),
    "matrix value": MatrixProbe(slug="mine", unit="", meaning="", cost="cheap", value=refuse),
    "noise value": GradientNoiseProbe(slug="mine", unit="", meaning="", cost="cheap", value=refuse),
}  # fmt: skip


def two_halves(model: nn.Module, opt: torch.optim.Optimizer, seed: int) -> None:
    (loss_of(model, seed) / 2).backward()
    (loss_of(model, seed + 20) / 2).backward()
    opt.step()
    opt.zero_grad()


@pytest.mark.parametrize("kind", FAULTY)
def test_a_probe_that_raises_is_switched_off_with_one_warning_and_training_goes_on(kind: str) -> None:
    model, free = make(), make()
    opt, free_opt = adamw(model), adamw(free)
    attach(model, opt, replace(probes.full, probes=(*probes.full.probes, FAULTY[kind])))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(6):
            two_halves(model, opt, seed)
            two_halves(free, free_opt, seed)
    ours = [str(one.message) for one in caught if "trimtab" in str(one.message)]
    assert len(ours) == 1
    assert "ZeroDivisionError: a probe of mine" in ours[0]
    assert_same_weights(model, free)


# Nothing is changed and nothing remains.


@pytest.mark.parametrize("preset", [probes.cheap, probes.standard, probes.full], ids=lambda preset: preset.name)
@pytest.mark.parametrize("every", [1, 2])
def test_a_watched_run_equals_an_unwatched_one_bit_for_bit(preset: Preset, every: int) -> None:
    model, free = make(), make()
    opt, free_opt = adamw(model), adamw(free)
    w = attach(model, opt, preset, every=every)
    for seed in range(5):
        state = torch.get_rng_state()
        two_halves(model, opt, seed)
        assert torch.equal(torch.get_rng_state(), state)
        two_halves(free, free_opt, seed)
        assert_same_weights(model, free)
    assert list(model.state_dict()) == list(free.state_dict())
    w.remove()
    assert hooks_in(model, opt) == []


@pytest.mark.parametrize("preset", [probes.cheap, probes.standard, probes.full], ids=lambda preset: preset.name)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_nothing_remains_after_removal(preset: Preset, steps: int) -> None:
    model = make()
    opt = adamw(model)
    with attach(model, opt, preset, every=2) as w:
        for seed in range(steps):
            train(model, opt, seed)
    assert hooks_in(model, opt) == []
    w.remove()
    before = dict(w.last)
    train(model, opt)
    assert w.last == before


def test_nothing_remains_in_a_model_of_another_library() -> None:
    pytest.importorskip("transformers")
    model: Any = hugging_face("llama")
    before, kernel = hooks_in(model), model.config._attn_implementation
    opt = adamw(model)
    one, other = attach(model, opt), attach(model, opt)
    model(tokens()).logits.sum().backward()
    opt.step()
    assert_same_row(one.last, other.last)
    one.remove()
    other.remove()
    assert hooks_in(model, opt) == before
    assert model.config._attn_implementation == kernel


@pytest.mark.parametrize("passed", [False, True])
def test_reading_after_removal_is_an_error_and_leaves_no_hooks(passed: bool) -> None:
    model = make()
    w = attach(model, None)
    if passed:
        model(tokens())
    w.remove()
    with pytest.raises(WatchError):
        w.read()
    assert hooks_in(model) == []


@pytest.mark.parametrize("passed", [False, True])
def test_a_failed_or_late_reading_by_hand_hangs_no_hooks_onto_the_model_after_removal(passed: bool) -> None:
    model = make()
    w = attach(model, None)
    if passed:
        model(tokens())
    w.remove()
    with contextlib.suppress(WatchError, EmptyReadingError):
        w.read()
    assert hooks_in(model) == []


def test_a_failure_inside_a_with_block_leaves_no_hooks() -> None:
    model = make()
    opt = adamw(model)

    def fail() -> None:
        with attach(model, opt):
            loss_of(model)
            raise KeyError("mine")

    with pytest.raises(KeyError):
        fail()
    assert hooks_in(model, opt) == []


# Plain modules.


def test_an_in_place_operation_after_a_linear_layer_is_read_before_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3), nn.ReLU(inplace=True)).double()
    twin = copy.deepcopy(model)
    opt, twin_opt = adamw(model), adamw(twin)
    w = watch(model, probes.full, optimizer=opt, every=1)
    for seed in range(2):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            first = F.linear(x, twin[0].weight, twin[0].bias)
        hidden = F.linear(x, twin[0].weight, twin[0].bias)
        hidden.retain_grad()
        F.relu(F.linear(F.relu(hidden), twin[2].weight, twin[2].bias)).sum().backward()
        model(x).sum().backward()
        opt.step(), twin_opt.step()
        opt.zero_grad(), twin_opt.zero_grad()
        assert hidden.grad is not None
        assert w.last["output/0/l2_norm"] == pytest.approx(first.norm().item(), rel=1e-9)
        assert w.last["output/0/mean"] == pytest.approx(first.mean().item(), rel=1e-9)
        assert w.last["input/2/l2_norm"] == pytest.approx(first.relu().norm().item(), rel=1e-9)
        assert w.last["output_grad/0/l2_norm"] == pytest.approx(hidden.grad.norm().item(), rel=1e-9)
    assert_same_weights(model, twin)


def test_an_input_that_is_a_parameter_is_counted_once_a_step_and_keeps_no_hook() -> None:
    class Latents(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latents, self.mix = nn.Parameter(torch.ones(3, 4)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return (self.mix(self.latents) * x).square().sum()

    torch.manual_seed(0)
    model = Latents()
    opt = adamw(model)
    w = watch(model, probes.standard, optimizer=opt, every=1)
    for _ in range(3):
        model(torch.ones(3, 4)).backward()
        assert model.latents.grad is not None
        expected = model.latents.grad.norm().item()
        opt.step()
        opt.zero_grad()
        assert w.last["input_grad/mix/l2_norm"] == pytest.approx(expected, rel=1e-5)
    w.remove()
    assert hooks_in(model, opt) == []


def test_a_layer_that_is_called_twice_in_a_pass_is_read_over_both_calls() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    model, x = Twice(), torch.randn(3, 4).double()
    w = watch(model, probes.standard)
    model(x)
    with torch.no_grad():
        once = F.linear(x, layer.weight, layer.bias)
        twice = F.linear(once, layer.weight, layer.bias)
    row = w.read()
    assert row["input/layer/l2_norm"] == pytest.approx(torch.cat((x, once)).norm().item(), rel=1e-9)
    assert row["output/layer/max_abs"] == pytest.approx(torch.cat((once, twice)).abs().max().item(), rel=1e-9)
