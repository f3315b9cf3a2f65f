"""What a host promises about the places that probes read: points, and queries and keys of attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import AttentionPoint, Host, Site
from trimtab.testing.host_laboratory import TOLERANCE, HostLaboratory, assert_no_trace, name_of, trace_of


class PointContract(HostLaboratory):
    """The tests of points and of attention watchers."""

    def test_every_point_is_a_module_of_the_model_that_is_called(self) -> None:
        """The tensor on the side that is read is of floating point."""
        host, _ = self.start()
        points = host.find_points()
        assert points, f"{host.family} offers no points"
        inside = {id(module) for module in host.model.modules()}
        passed = self.passed([point.module for point in points], host)
        for point in points:
            where = f"{point.what} of layer {point.layer}"
            assert id(point.module) in inside, f"{where} is not in the model"
            assert id(point.module) in passed, f"{where} is not called in a forward pass"
            assert passed[id(point.module)][point.side == "output"].is_floating_point(), where

    def test_attention_watchers_see_the_queries_and_keys_that_attention_uses(self) -> None:
        """Explicit softmax attention of the watched queries and keys gives Site.HEAD_OUT; watching changes no bit."""
        host, _ = self.start(sharp=True)
        plain, before = self.logits(host), trace_of(host.model)
        B, T = self.tokens(host).shape[:2]
        for point in _attentions(host):
            seen: list[tuple[Tensor, Tensor, Tensor | None, float]] = []
            unwatch = point.watch(lambda *what, seen=seen: seen.append(what))
            assert torch.equal(self.logits(host), plain), f"watching the attention of layer {point.layer}"
            unwatch()
            self.logits(host)
            assert_no_trace(host, before, f"watching the attention of layer {point.layer}")
            assert len(seen) == 1, f"attention of layer {point.layer} is seen {len(seen)} times in one watched pass"
            q_BHTK, k_BGSK, mask, scale = seen[0]
            assert point.num_heads is not None
            assert tuple(q_BHTK.shape[:3]) == (B, point.num_heads, T)
            assert (k_BGSK.shape[0], *k_BGSK.shape[2:]) == (B, T, q_BHTK.shape[-1])
            assert point.num_heads % k_BGSK.shape[1] == 0
            taps = {tap.site: tap for tap in host.find_taps() if tap.layer == point.layer}
            if Site.VALUE not in taps or Site.HEAD_OUT not in taps:
                continue
            v_BGSK, o_BHTK = self.seen(taps[Site.VALUE], host), self.seen(taps[Site.HEAD_OUT], host)
            expected = _explicit(q_BHTK, k_BGSK, v_BGSK, mask, scale, point.cap)
            torch.testing.assert_close(expected, o_BHTK, rtol=0, atol=TOLERANCE)

    def test_attention_watchers_see_queries_and_keys_after_every_edit(self) -> None:
        """Watchers see the tensors that enter the scores, not those that were projected."""
        host, _ = self.start()
        for point in _attentions(host):
            sites = (Site.QUERY_ROTATED, Site.KEY_ROTATED)
            taps = [tap for tap in host.find_taps() if tap.layer == point.layer and tap.site in sites]
            edits = [_Constant(float(number)) for number in range(1, 1 + len(taps))]
            seen: list[tuple[Any, ...]] = []
            unwatch = point.watch(lambda *what, seen=seen: seen.append(what))
            for tap, edit in zip(taps, edits, strict=True):
                tap.slot.append(edit)
            self.logits(host)
            unwatch()
            for tap, edit in zip(taps, edits, strict=True):
                tensor = seen[0][sites.index(tap.site)]
                assert float(tensor.unique()) == edit.value, f"the edit at {name_of(tap)} is not seen"
                tap.slot.discard(edit)


class _Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    @override
    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


def _attentions(host: Host) -> Sequence[AttentionPoint]:
    if not host.find_attentions():
        raise SkipTest(f"{host.family} offers no attention to watch")
    return host.find_attentions()


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, cap: float | None) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(groups, dim=1).mT * scale
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - scores.shape[-2])
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    return scores.softmax(-1) @ v.repeat_interleave(groups, dim=1)
