"""Moments from a compiled kernel are those of eager operations, whatever the tensor holds, and change no training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.probe import Preset
from trimtab.watching import WatchError, fused, kernels, optimizer_step
from trimtab.watching.fused import fused_measure
from trimtab.watching.measure import measure, of_piece
from trimtab.watching.optimizer_step import OptimizerStep


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many tensors each kernel has read."""
    calls: Counter[str] = Counter()
    for module, name in ((fused, "powers"), (optimizer_step, "adam_squares")):
        kernel = getattr(module, name)

        def counted(*args: Any, name: str = name, kernel: Any = kernel, **kwargs: Any) -> Any:
            calls[name] += 1
            return kernel(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    return calls


@pytest.mark.parametrize("high", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(512, 128), (5, 777, 61), (100,), (0, 3)])
def test_moments_are_those_of_float64(
    shape: tuple[int, ...], dtype: torch.dtype, high: bool, threads: int, by_kernel: Counter[str]
) -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=source) * 0.1 + 3
    x.view(-1)[::997] = 300.0
    x = x.to(dtype)
    wide = x.double()
    found = fused_measure(x, high=high)
    assert by_kernel["powers"] == 1
    expected = [
        x.numel(),
        0,
        *(wide.pow(n).sum().item() for n in range(1, 5 if high else 3)),
        *([] if high else [0, 0]),
    ]
    assert found[:6].tolist() == pytest.approx(expected, rel=1e-6)
    assert found[6] == (wide.abs().max() if len(x) else 0)


@pytest.mark.parametrize("size", [100, 768, 160_000, 131_073, 1 << 17])
@pytest.mark.parametrize("spread", [1e-1, 1e-2])
def test_kurtosis_of_entries_far_from_zero_is_kept_in_rows_of_any_length(size: int, spread: float) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)) * spread + 1
    count, _, total, squares, cubes, fourths = fused_measure(x)[:6].tolist()
    mean = total / count
    variance = squares / count - mean**2
    fourth = fourths / count - 4 * mean * cubes / count + 6 * mean**2 * squares / count - 3 * mean**4
    z = x.double() - x.double().mean()
    assert variance == pytest.approx(z.square().mean().item(), rel=1e-4)
    assert fourth / variance**2 == pytest.approx((z**4).mean().item() / z.square().mean().item() ** 2, rel=2e-2)


@pytest.mark.parametrize("high", [False, True])
def test_the_spread_of_entries_far_from_zero_is_kept(high: bool) -> None:
    x = torch.randn(1 << 17, generator=torch.Generator().manual_seed(0)) * 1e-2 + 10
    count, _, total, squares, *_ = fused_measure(x, high=high).tolist()
    mean = total / count
    rel = 1e-5 if high else 1e-1  # of the plain sum of squares only the norm is taken
    assert squares / count - mean**2 == pytest.approx(float(x.double().var(correction=0)), rel=rel)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_entries_that_are_not_finite_and_powers_too_large_are_as_in_eager_mode(bad: float) -> None:
    x = torch.randn((1 << 17) + 5, generator=torch.Generator().manual_seed(0))
    x[[0, 70_000]] = bad
    assert torch.equal(fused_measure(x), measure(x))
    assert fused_measure(x)[1] == (0 if bad == 1e30 else 2)


def test_padding_is_counted_and_views_are_measured() -> None:
    x = torch.randn(300, 1024, generator=torch.Generator().manual_seed(0))
    seen = x.T[:, 10:]
    assert fused_measure(seen, entries=1000).tolist() == pytest.approx(
        measure(seen, entries=1000).tolist(), rel=1e-6, abs=1e-2
    )


@pytest.mark.parametrize("high", [False, True])
def test_the_kernel_of_other_devices_gives_the_moments_of_eager_operations(high: bool) -> None:
    x = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    x[7], x[9] = torch.nan, torch.inf
    assert fused._compiled(of_piece)(x, high).tolist() == pytest.approx(of_piece(x, high).tolist(), rel=1e-12)


def test_subclasses_and_other_dtypes_are_left_to_eager_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.watching.fused.powers", None)
    source = torch.randn(100, generator=torch.Generator().manual_seed(0))
    for x in (source.double(), source.half(), source.as_subclass(type("Mine", (Tensor,), {}))):
        assert torch.equal(fused_measure(x), measure(x))


def test_the_same_thread_count_gives_the_same_bits(threads: int) -> None:
    x = torch.randn(300_001, generator=torch.Generator().manual_seed(0))
    assert len({tuple(fused_measure(x).tolist()) for _ in range(20)}) == 1


def test_one_graph_serves_all_sizes() -> None:
    graph = torch.compile(of_piece, dynamic=True, backend="eager")
    graph(torch.zeros(1 << 10), True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (2, 17, 333, 32_768):
            assert graph(torch.ones(size), True)[2] == size


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_updates_are_those_of_eager_operations(decay: float, threads: int, by_kernel: Counter[str]) -> None:
    torch.manual_seed(0)
    shapes = ((300, 311), (17,), (1,), (64, 512))
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    parameters.append(torch.nn.Parameter(torch.randn(20, 30).T))  # not contiguous
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=decay)
    steps = [OptimizerStep(optimizer, (), fused=each) for each in (False, True)]
    for number in range(3):
        for p in parameters:
            p.grad = torch.randn_like(p)
            if number == 2 and p is parameters[0]:
                p.grad[0, :2] = torch.nan
        before = [p.detach().clone() for p in parameters]
        optimizer.step()
        eager, found = (step.after() for step in steps)
        for p, old in zip(parameters, before, strict=True):
            moved, weight, counted, lost = found[id(p)].sums.tolist()
            assert [counted, lost] == [p.numel() - lost, 2.0 if number == 2 and p is parameters[0] else 0.0]
            assert [moved, weight] == pytest.approx(eager[id(p)].sums[:2].tolist(), rel=2e-4)
            # More exact than eager operations, which add up to 65,536 squares in single precision.
            change = (p.detach().double() - old).nan_to_num(0.0).square().sum().item()
            assert moved == pytest.approx(change, rel=1e-3)  # of a step in single precision some digits are left
    assert by_kernel["adam_squares"] == 3 * 4  # the fifth is not contiguous


def test_a_compiler_that_knows_no_option_is_used_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nfor flag; do case $flag in -fopenmp) exit 1;; esac; done\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    kernels.load.cache_clear()
    try:
        assert fused_measure(torch.ones(200_000), high=False)[:4].tolist() == [200_000, 0, 200_000, 200_000]
    finally:
        kernels.load.cache_clear()


def trained(preset: Preset | None, *, compiled: bool, by_kernels: bool = False) -> tuple[list[float], dict[str, float]]:
    torch.manual_seed(0)
    model = GPT(GPTConfig(width=128, num_layers=2, num_heads=2, context=64, tied=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watching = watch(host_for(model), preset, optimizer=optimizer, every=1, fused=by_kernels) if preset else None
    called = torch.compile(model, backend="aot_eager") if compiled else model
    hooks_matter = torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)
    tokens = torch.randint(0, 256, (16, 65), generator=torch.Generator().manual_seed(1))
    losses: list[float] = []
    for _ in range(3):
        with hooks_matter:
            logits: Tensor = called(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    row = dict(watching.last) if watching else {}
    if watching:
        watching.remove()
    return losses, row


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("preset", [probes.cheap, probes.standard], ids=["cheap", "standard"])
def test_a_watch_with_fused_readings_changes_no_bit_and_reads_the_same(
    preset: Preset, compiled: bool, by_kernel: Counter[str]
) -> None:
    plain, _ = trained(None, compiled=compiled)
    losses, row = trained(preset, compiled=compiled, by_kernels=True)
    assert losses == plain
    assert by_kernel["powers"] > 3 * 20
    # Adam's probes need more than the kernel adds up.
    assert (by_kernel["adam_squares"] > 3 * 10) is (preset is probes.cheap)
    by_kernel.clear()
    _, eager = trained(preset, compiled=compiled)
    assert not by_kernel
    assert row.keys() == eager.keys()
    for key, number in row.items():
        assert number == pytest.approx(eager[key], rel=1e-4, abs=1e-7), key


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("", "no C compiler was found; install one or set CC"),
        ("no-such-compiler", "no-such-compiler: No such file or directory"),
        ("sh -c 'echo broken >&2; exit 3'", "broken"),
    ],
)
def test_without_a_compiler_the_watch_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, compiler: str, reason: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    kernels.load.cache_clear()
    model = GPT(GPTConfig(width=16, num_layers=1, num_heads=1, context=8))
    try:
        with pytest.raises(WatchError, match=f"CompilerError: .*{reason}\\); leave fused out"):
            watch(host_for(model), probes.cheap, fused=True)
    finally:
        kernels.load.cache_clear()
    assert not any(part._forward_hooks for part in model.modules())
