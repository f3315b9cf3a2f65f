"""What every host owes every edit and probe: its sites act and can be left, its parts are the model's, copies work."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any, cast
from unittest import SkipTest

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import AttentionPoint, Host, Part, PartView, Site, Slot, Tap
from trimtab.testing.families import logits_of

TOLERANCE = 1e-5
SENSITIVITY = 1e-6  # of the largest logit: what an edit that is heard must change at least
PER_HEAD = frozenset({Site.QUERY, Site.KEY, Site.VALUE, Site.QUERY_ROTATED, Site.KEY_ROTATED, Site.HEAD_OUT})
PER_PAIR = frozenset({Site.SCORES, Site.WEIGHTS})
PROJECTED = {Part.Q: Site.QUERY, Part.K: Site.KEY, Part.V: Site.VALUE}


class HostContract(ABC):
    """Subclass, fill in the hook, and let pytest collect the tests.

    Attributes:
        bias_or_norm_between: why a head whose rows of Q, K or V are zero is not zero at its site, such as a bias or a
            norm that the family has there; empty where it is.
    """

    bias_or_norm_between: str = ""

    @abstractmethod
    def make_host(self) -> Host:
        """A fresh host with random weights, the same ones on every call."""

    def tokens(self, host: Host) -> Tensor:
        """Token ids (B, T) that the model takes."""
        return torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))

    def test_every_site_takes_an_identity_edit_and_shows_it_the_documented_shape(self) -> None:
        """Also where the edit makes the family's kernel give way to explicit scores."""
        host, plain = self.start()
        for tap in _taps(host):
            edit, seen = _Copy(), list[Tensor]()
            tap.slot.append(edit)
            unwatch = tap.slot.watch(lambda before, after, seen=seen: seen.append(before))
            _assert_close(self.logits(host), plain, f"an identity edit at {_name(tap)}")
            unwatch()
            tap.slot.discard(edit)
            assert len(seen) == 1, f"{_name(tap)} is passed {len(seen)} times in a forward pass"
            expected = self.shape(tap, host)
            assert tuple(seen[0].shape) == expected, f"{_name(tap)}: {tuple(seen[0].shape)}, documented {expected}"

    def test_an_edit_at_every_site_reaches_the_output_and_leaves_no_trace(self) -> None:
        """Compared to an identity edit, as a change of kernel is no effect; after it, all is bitwise as before."""
        host, plain = self.start()
        before = _trace(host.model)
        for tap in _taps(host):
            changes: list[Tensor] = []
            for edit in (_Copy(), _Gain().to(plain)):
                tap.slot.append(edit)
                changes.append(self.logits(host))
                tap.slot.discard(edit)
                _assert_no_trace(host, before, f"an edit at {_name(tap)}")
                assert torch.equal(self.logits(host), plain), f"the logits after an edit at {_name(tap)}"
            change = float((changes[1] - changes[0]).abs().max() / plain.abs().max())
            assert change > SENSITIVITY, f"an edit at {_name(tap)} changes the logits by {change:.1e} of their largest"

    def test_an_edit_at_every_site_is_trained(self) -> None:
        """Gradients flow into the edit, with edits at all other sites as well."""
        host, plain = self.start()
        edits = [(tap, _Gain().to(plain)) for tap in _taps(host)]
        for tap, edit in edits:
            tap.slot.append(edit)
        logits_of(host.model, self.tokens(host)).logsumexp(-1).square().sum().backward()
        for tap, edit in edits:
            assert edit.strength.grad is not None, f"no gradient at {_name(tap)}"
            assert edit.strength.grad != 0, f"the gradient at {_name(tap)} is zero"

    def test_edits_of_all_sites_are_discarded_in_any_order(self) -> None:
        """The last to leave takes the scaffolding down, whichever it is."""
        for turn in (1, -1):
            host, plain = self.start()
            before = _trace(host.model)
            edits = [(tap, _Gain().to(plain)) for tap in _taps(host)]
            for tap, edit in edits:
                tap.slot.append(edit)
            for tap, edit in edits[::turn]:
                tap.slot.discard(edit)
            _assert_no_trace(host, before, "edits at all sites")
            assert torch.equal(self.logits(host), plain)

    def test_a_watcher_of_a_slot_changes_nothing(self) -> None:
        """Bitwise while it is there, and without trace after."""
        host, plain = self.start()
        before = _trace(host.model)
        for tap in _taps(host):
            seen: list[Tensor] = []
            unwatch = tap.slot.watch(lambda before, after, seen=seen: seen.append(after))
            assert torch.equal(self.logits(host), plain), f"the logits under a watcher at {_name(tap)}"
            unwatch()
            assert seen or tap.site in PER_PAIR, f"a watcher at {_name(tap)} sees nothing"
            _assert_no_trace(host, before, f"a watcher at {_name(tap)}")

    def test_taps_come_layer_by_layer_and_once(self) -> None:
        """Two calls give the same slots."""
        host, _ = self.start()
        taps = _taps(host)
        layers = [tap.layer for tap in taps if tap.layer is not None]
        assert [layer for layer, _ in groupby(layers)] == list(range(max(layers) + 1))
        assert len({id(tap.slot) for tap in taps}) == len(taps), "two taps share a slot"
        assert [id(tap.slot) for tap in host.find_taps()] == [id(tap.slot) for tap in taps]

    def test_every_weight_has_the_shape_out_in(self) -> None:
        """As the tensors that pass its module say; parts that share a matrix have its outputs together."""
        host, _ = self.start()
        views = host.find_parts()
        assert views, f"{host.family} offers no parts"
        passed = self.passed([view.module for view in views], host)
        rows = Counter[int]()
        for view in views:
            rows[id(view.module)] += view.weight.shape[0]
        for view in views:
            assert id(view.module) in passed, f"{_name(view)} is not called in a forward pass"
            given, returned = passed[id(view.module)]
            if view.weight.ndim == 1:
                assert view.weight.shape[0] == returned.shape[-1], _name(view)
            elif view.part is Part.EMBEDDING:
                assert view.weight.shape[1] == returned.shape[-1], _name(view)
            else:
                shape = (rows[id(view.module)], view.weight.shape[1])
                expected = (returned.shape[-1], given.shape[-1])
                assert shape == expected, f"{_name(view)}: {shape}, but its module maps {expected[::-1]}"

    def test_writing_a_part_changes_that_part_alone_and_the_output(self) -> None:
        """What was written is read back; other parts of a shared matrix keep their weights."""
        host, plain = self.start()
        views = host.find_parts()
        for view in views:
            tied = [v for v in views if v.module is not view.module and v.module.weight is view.module.weight]
            others = [v for v in views if v is not view and v not in tied]
            kept, was = [v.weight.detach().clone() for v in others], view.weight.detach().clone()
            value = was + 0.1 * torch.randn(was.shape, generator=torch.Generator().manual_seed(2)).to(was)
            view.write(value)
            assert torch.equal(view.weight, value), f"{_name(view)} reads back another weight"
            for other, weight in zip(others, kept, strict=True):
                assert torch.equal(other.weight, weight), f"writing {_name(view)} changed {_name(other)}"
            change = float((self.logits(host) - plain).abs().max() / plain.abs().max())
            assert change > SENSITIVITY, f"writing {_name(view)} changes the logits by {change:.1e} of their largest"
            view.write(was)
            assert torch.equal(self.logits(host), plain), f"writing {_name(view)} back does not restore the logits"

    def test_a_head_whose_rows_are_zero_is_the_same_for_every_token_at_its_site(self) -> None:
        """The rows of Q, K and V are in the order of the heads at Site.QUERY, KEY and VALUE."""
        for part, host, tap, head in self.zeroed_heads():
            x_BTK = self.seen(tap, host)[:, head]
            spread = float((x_BTK - x_BTK[:1, :1]).abs().max())
            assert spread <= 1e-6, f"head {head} of {part} at {_name(tap)} still depends on the token, by {spread:.1e}"

    def test_a_head_whose_rows_are_zero_is_zero_at_its_site_and_the_others_stay(self) -> None:
        """Where no bias and no norm comes between."""
        if self.bias_or_norm_between:
            raise SkipTest(self.bias_or_norm_between)
        for part, host, tap, head in self.zeroed_heads():
            fresh, _ = self.start()
            plain = self.seen(next(t for t in fresh.taps(tap.site) if t.layer == tap.layer), fresh)
            x_BHTK = self.seen(tap, host)
            assert not x_BHTK[:, head].any(), f"head {head} of {part} at {_name(tap)}"
            others = [h for h in range(tap.num_heads) if h != head]
            torch.testing.assert_close(x_BHTK[:, others], plain[:, others], rtol=0, atol=1e-6)

    def test_every_point_is_a_module_of_the_model_that_is_called(self) -> None:
        """On the side that is read there is a floating-point tensor."""
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

    def test_attention_watchers_see_what_attention_is_made_of(self) -> None:
        """Explicit softmax attention of what they see gives Site.HEAD_OUT, and watching changes no bit."""
        host, _ = self.start(sharp=True)
        plain, before = self.logits(host), _trace(host.model)
        B, T = self.tokens(host).shape[:2]
        for point in _attentions(host):
            seen: list[tuple[Tensor, Tensor, Tensor | None, float]] = []
            unwatch = point.watch(lambda *what, seen=seen: seen.append(what))
            assert torch.equal(self.logits(host), plain), f"watching the attention of layer {point.layer}"
            unwatch()
            self.logits(host)
            _assert_no_trace(host, before, f"watching the attention of layer {point.layer}")
            assert len(seen) == 1, f"attention of layer {point.layer} is seen {len(seen)} times in one watched pass"
            q_BHTK, k_BGSK, mask, scale = seen[0]
            assert tuple(q_BHTK.shape[:3]) == (B, point.num_heads, T)
            assert (k_BGSK.shape[0], *k_BGSK.shape[2:]) == (B, T, q_BHTK.shape[-1])
            assert point.num_heads % k_BGSK.shape[1] == 0
            found = {tap.site: tap for tap in host.find_taps() if tap.layer == point.layer}
            if Site.VALUE not in found or Site.HEAD_OUT not in found:
                continue
            v_BGSK, o_BHTK = self.seen(found[Site.VALUE], host), self.seen(found[Site.HEAD_OUT], host)
            expected = _explicit(q_BHTK, k_BGSK, v_BGSK, mask, scale, point.cap)
            torch.testing.assert_close(expected, o_BHTK, rtol=0, atol=TOLERANCE)

    def test_attention_watchers_see_queries_and_keys_after_every_edit(self) -> None:
        """What enters the scores, not what was projected."""
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
                assert float(tensor.unique()) == edit.value, f"the edit at {_name(tap)} is not seen"
                tap.slot.discard(edit)

    def test_a_copy_of_an_edited_model_is_independent(self) -> None:
        """It works like the original, and neither hears of what happens to the other."""
        for tap_number, tap in enumerate(_taps(self.start()[0])):
            host, plain = self.start()
            slot, edit = host.find_taps()[tap_number].slot, _Gain().to(plain)
            slot.append(edit)
            edited = self.logits(host)
            copied = type(host)(copy.deepcopy(host.model))
            assert torch.equal(self.logits(copied), edited), f"a copy with an edit at {_name(tap)}"
            its_slot = copied.find_taps()[tap_number].slot
            its_edit = next(iter(its_slot), edit)
            assert its_edit is not edit, f"the copy has no edit of its own at {_name(tap)}"
            with torch.no_grad():
                cast(_Gain, its_edit).strength.fill_(-0.5)
            assert torch.equal(self.logits(host), edited), f"the copy's edit at {_name(tap)} changes the original"
            assert not torch.equal(self.logits(copied), edited), f"the copy's edit at {_name(tap)} is not heard"
            slot.discard(edit)
            assert torch.equal(self.logits(host), plain), f"the original after its edit at {_name(tap)} left"
            assert not torch.equal(self.logits(copied), plain), f"the copy lost its edit at {_name(tap)}"
            its_slot.discard(its_edit)
            assert torch.equal(self.logits(copied), plain), f"the copy after its edit at {_name(tap)} left"

    def start(self, *, sharp: bool = False) -> tuple[Host, Tensor]:
        """A fresh host in eval mode and its logits; ``sharp`` scales Q and K so that attention is far from even."""
        host = self.make_host()
        host.model.eval()
        if sharp:
            for view in host.find_parts():
                if view.part in (Part.Q, Part.K):
                    view.write(view.weight.detach() * 20)
        return host, self.logits(host)

    def logits(self, host: Host) -> Tensor:
        """Of one forward pass without gradients."""
        with torch.no_grad():
            return logits_of(host.model, self.tokens(host))

    def shape(self, tap: Tap, host: Host) -> tuple[int, ...]:
        """What the comments of ``Site`` say; fails where width or heads are missing."""
        B, T = self.tokens(host).shape[:2]
        assert (tap.num_heads > 0) == (tap.site in PER_HEAD | PER_PAIR), f"num_heads of {_name(tap)}"
        assert (tap.width == 0) == (tap.site in PER_PAIR), f"width of {_name(tap)}"
        if tap.site in PER_PAIR:
            return B, tap.num_heads, T, T
        return (B, tap.num_heads, T, tap.width) if tap.site in PER_HEAD else (B, T, tap.width)

    def seen(self, tap: Tap, host: Host) -> Tensor:
        """What passes at a site."""
        seen: list[Tensor] = []
        unwatch = tap.slot.watch(lambda before, after: seen.append(after))
        self.logits(host)
        unwatch()
        return seen[0]

    def passed(self, modules: Sequence[nn.Module], host: Host) -> dict[int, tuple[Tensor, Tensor]]:
        """By the id of each module that is called: the first tensor it is given, and the first that it gives back."""
        found: dict[int, tuple[Tensor, Tensor]] = {}

        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            found[id(module)] = given[0], output[0] if isinstance(output, tuple) else output

        unique = {id(module): module for module in modules}
        handles = [module.register_forward_hook(keep, with_kwargs=True) for module in unique.values()]
        self.logits(host)
        for handle in handles:
            handle.remove()
        return found

    def zeroed_heads(self) -> Sequence[tuple[Part, Host, Tap, int]]:
        """For the first and last head of each of Q, K and V in each layer: a host where the rows of that head are zero.

        Raises:
            SkipTest: if the host offers no such part together with its site.
        """
        found: list[tuple[Part, Host, Tap, int]] = []
        first, _ = self.start()
        sites = {(tap.site, tap.layer): tap for tap in first.find_taps()}
        for number, view in enumerate(first.find_parts()):
            tap = sites.get((PROJECTED[view.part], view.layer)) if view.part in PROJECTED else None
            for head in {0, tap.num_heads - 1} if tap is not None else ():
                host, _ = self.start()
                its_view = host.find_parts()[number]
                its_tap = next(t for t in host.taps(PROJECTED[view.part]) if t.layer == view.layer)
                weight = its_view.weight.detach().clone()
                assert weight.shape[0] == its_tap.num_heads * its_tap.width, f"rows of {_name(view)}"
                weight[head * its_tap.width : (head + 1) * its_tap.width] = 0
                its_view.write(weight)
                found.append((view.part, host, its_tap, head))
        if not found:
            raise SkipTest(f"{first.family} offers no part of Q, K and V together with its site")
        return found


class _Copy(nn.Module):
    @override
    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class _Gain(nn.Module):  # another for every channel: a norm that comes later cannot undo it
    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.5))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.strength.to(x) * torch.linspace(0, 2, x.shape[-1], dtype=x.dtype, device=x.device))


class _Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    @override
    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


def _taps(host: Host) -> Sequence[Tap]:
    if not host.find_taps():
        raise SkipTest(f"{host.family} offers no sites")
    return host.find_taps()


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


def _name(place: Tap | PartView) -> str:
    kind = place.site if isinstance(place, Tap) else place.part
    return f"{kind} of layer {place.layer}"


def _assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    error = float((found - expected).abs().max())
    assert error <= TOLERANCE, f"{what} changes the logits by {error:.1e}"


def _trace(model: nn.Module) -> set[str]:
    """Everything an edit could leave behind, as lines."""
    lines = {f"key {key}" for key in model.state_dict()}
    for name, module in model.named_modules():
        lines |= {f"{name}: attribute {key}" for key in vars(module)} | {f"{name}: is a {type(module).__name__}"}
        for key, hooks in vars(module).items():
            if "_hooks" in key and isinstance(hooks, dict):
                lines.add(f"{name}: {len(hooks)} of {key}")
        if isinstance(module, Slot):
            lines.add(f"{name}: {len(module.watchers)} watchers")
    return lines


def _assert_no_trace(host: Host, before: set[str], what: str) -> None:
    after = _trace(host.model)
    assert after == before, f"{what} leaves {sorted(after - before)}, takes {sorted(before - after)}"
