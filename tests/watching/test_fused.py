"""Moments from a compiled kernel are those of eager operations, whatever the tensor holds, and change no training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.watching import WatchError, fused
from trimtab.watching.fused import LEAST, ROW, fused_measure
from trimtab.watching.measure import measure, of_piece


@pytest.mark.parametrize("high", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(LEAST // 128, 128), (5, 777, 61), (100,)])
def test_moments_are_those_of_float64(shape: tuple[int, ...], dtype: torch.dtype, high: bool) -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=source) * 0.1 + 3
    x.view(-1)[::997] = 300.0
    x = x.to(dtype)
    wide = x.double()
    found = fused_measure(x, high=high)
    expected = [
        x.numel(),
        0,
        *(wide.pow(n).sum().item() for n in range(1, 5 if high else 3)),
        *([] if high else [0, 0]),
    ]
    assert found[:6].tolist() == pytest.approx(expected, rel=1e-6)
    assert found[6] == wide.abs().max()


@pytest.mark.parametrize("high", [False, True])
def test_the_spread_of_entries_far_from_zero_is_kept(high: bool) -> None:
    x = torch.randn(LEAST * 2, generator=torch.Generator().manual_seed(0)) * 1e-2 + 10
    count, _, total, squares, *_ = fused_measure(x, high=high).tolist()
    mean = total / count
    rel = 1e-5 if high else 1e-1  # of the plain sum of squares only the norm is taken
    assert squares / count - mean**2 == pytest.approx(float(x.double().var(correction=0)), rel=rel)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_entries_that_are_not_finite_and_powers_too_large_are_as_in_eager_mode(bad: float) -> None:
    x = torch.randn(2 * LEAST + 5, generator=torch.Generator().manual_seed(0))
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
    x = torch.randn(LEAST, generator=torch.Generator().manual_seed(0))
    x[7], x[9] = torch.nan, torch.inf
    assert fused._kernel(of_piece)(x, high).tolist() == pytest.approx(of_piece(x, high).tolist(), rel=1e-12)


def test_one_kernel_serves_all_shapes() -> None:
    fused_measure(torch.ones(LEAST))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (17, 40, 333):
            assert fused_measure(torch.ones(rows, ROW))[0] == rows * ROW


def trained(*, watched: bool, compiled: bool) -> tuple[list[float], dict[str, float]]:
    torch.manual_seed(0)
    model = GPT(GPTConfig(width=128, num_layers=2, num_heads=2, context=64, tied=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watching = watch(host_for(model), probes.standard, optimizer=optimizer, every=1, fused=True) if watched else None
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
def test_a_watch_with_fused_readings_changes_no_bit_and_reads_the_same(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    plain, _ = trained(watched=False, compiled=compiled)
    losses, row = trained(watched=True, compiled=compiled)
    assert losses == plain
    calls: list[int] = []
    monkeypatch.setattr(
        "trimtab.watching.attach.fused_measure", lambda x, **k: (calls.append(x.numel()), measure(x, **k))[1]
    )
    _, eager = trained(watched=True, compiled=compiled)
    assert max(calls) >= LEAST, "no tensor was large enough for a kernel"
    assert row.keys() == eager.keys()
    for key, number in row.items():
        assert number == pytest.approx(eager[key], rel=1e-4, abs=1e-7), key


def test_without_a_compiler_the_watch_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler was found\nlong story")

    monkeypatch.setattr(fused, "_kernel", lambda function: broken)
    model = GPT(GPTConfig(width=16, num_layers=1, num_heads=1, context=8))
    with pytest.raises(WatchError, match=r"no C\+\+ compiler was found\); leave fused out"):
        watch(host_for(model), probes.cheap, fused=True)
    assert not any(part._forward_hooks for part in model.modules())
