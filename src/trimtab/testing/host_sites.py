"""What a host promises about its sites: edits act there, can be taken out, are trained, and are copied."""

from __future__ import annotations

import copy
from itertools import groupby
from typing import cast

import torch
from torch import Tensor

from trimtab.testing.families import logits_of
from trimtab.testing.host_laboratory import (
    PER_PAIR,
    SENSITIVITY,
    Copy,
    Gain,
    HostLaboratory,
    assert_close,
    assert_no_trace,
    name_of,
    taps_of,
    trace_of,
)


class SiteContract(HostLaboratory):
    """The tests of sites and slots."""

    def test_every_site_takes_an_identity_edit_and_shows_it_the_documented_shape(self) -> None:
        """This holds also where the edit replaces the family's kernel by explicit scores."""
        host, plain = self.start()
        for tap in taps_of(host):
            edit, seen = Copy(), list[Tensor]()
            tap.slot.append(edit)
            unwatch = tap.slot.watch(lambda before, after, seen=seen: seen.append(before))
            assert_close(self.logits(host), plain, f"an identity edit at {name_of(tap)}")
            unwatch()
            tap.slot.discard(edit)
            assert len(seen) == 1, f"{name_of(tap)} is passed {len(seen)} times in a forward pass"
            expected = self.shape(tap, host)
            assert tuple(seen[0].shape) == expected, f"{name_of(tap)}: {tuple(seen[0].shape)}, documented {expected}"

    def test_an_edit_at_every_site_reaches_the_output_and_leaves_no_trace(self) -> None:
        """Compared to an identity edit: a change of kernel is no effect. Afterwards all is bitwise as before."""
        host, plain = self.start()
        before = trace_of(host.model)
        for tap in taps_of(host):
            changes: list[Tensor] = []
            for edit in (Copy(), Gain().to(plain)):
                tap.slot.append(edit)
                changes.append(self.logits(host))
                tap.slot.discard(edit)
                assert_no_trace(host, before, f"an edit at {name_of(tap)}")
                assert torch.equal(self.logits(host), plain), f"the logits after an edit at {name_of(tap)}"
            change = float((changes[1] - changes[0]).abs().max() / plain.abs().max())
            assert change > SENSITIVITY, (
                f"an edit at {name_of(tap)} changes the logits by {change:.1e} of their largest"
            )

    def test_an_edit_at_every_site_is_trained(self) -> None:
        """Gradients flow into every edit while there are edits at all sites."""
        host, plain = self.start()
        edits = [(tap, Gain().to(plain)) for tap in taps_of(host)]
        for tap, edit in edits:
            tap.slot.append(edit)
        logits_of(host.model, self.tokens(host)).logsumexp(-1).square().sum().backward()
        for tap, edit in edits:
            assert edit.strength.grad is not None, f"no gradient at {name_of(tap)}"
            assert edit.strength.grad != 0, f"the gradient at {name_of(tap)} is zero"

    def test_edits_of_all_sites_are_discarded_in_any_order(self) -> None:
        """The last edit to leave takes all hooks with it, whichever edit that is."""
        for turn in (1, -1):
            host, plain = self.start()
            before = trace_of(host.model)
            edits = [(tap, Gain().to(plain)) for tap in taps_of(host)]
            for tap, edit in edits:
                tap.slot.append(edit)
            for tap, edit in edits[::turn]:
                tap.slot.discard(edit)
            assert_no_trace(host, before, "edits at all sites")
            assert torch.equal(self.logits(host), plain)

    def test_a_watcher_of_a_slot_changes_nothing(self) -> None:
        """The logits are bitwise the same while it watches, and it leaves no trace."""
        host, plain = self.start()
        before = trace_of(host.model)
        for tap in taps_of(host):
            seen: list[Tensor] = []
            unwatch = tap.slot.watch(lambda before, after, seen=seen: seen.append(after))
            assert torch.equal(self.logits(host), plain), f"the logits under a watcher at {name_of(tap)}"
            unwatch()
            assert seen or tap.site in PER_PAIR, f"a watcher at {name_of(tap)} sees nothing"
            assert_no_trace(host, before, f"a watcher at {name_of(tap)}")

    def test_taps_come_layer_by_layer_and_once(self) -> None:
        """Two calls of ``find_taps`` give the same slots."""
        host, _ = self.start()
        taps = taps_of(host)
        layers = [tap.layer for tap in taps if tap.layer is not None]
        assert [layer for layer, _ in groupby(layers)] == list(range(max(layers) + 1))
        assert len({id(tap.slot) for tap in taps}) == len(taps), "two taps share a slot"
        assert [id(tap.slot) for tap in host.find_taps()] == [id(tap.slot) for tap in taps]

    def test_a_copy_of_an_edited_model_is_independent(self) -> None:
        """It gives the same logits, and a change of one leaves the other as it was."""
        for tap_number, tap in enumerate(taps_of(self.start()[0])):
            host, plain = self.start()
            slot, edit = host.find_taps()[tap_number].slot, Gain().to(plain)
            slot.append(edit)
            edited = self.logits(host)
            copied = type(host)(copy.deepcopy(host.model))
            assert torch.equal(self.logits(copied), edited), f"a copy with an edit at {name_of(tap)}"
            its_slot = copied.find_taps()[tap_number].slot
            its_edit = next(iter(its_slot), edit)
            assert its_edit is not edit, f"the copy has no edit of its own at {name_of(tap)}"
            with torch.no_grad():
                cast(Gain, its_edit).strength.fill_(-0.5)
            assert torch.equal(self.logits(host), edited), f"the copy's edit at {name_of(tap)} changes the original"
            assert not torch.equal(self.logits(copied), edited), f"the copy's edit at {name_of(tap)} is not heard"
            slot.discard(edit)
            assert torch.equal(self.logits(host), plain), f"the original after its edit at {name_of(tap)} left"
            assert not torch.equal(self.logits(copied), plain), f"the copy lost its edit at {name_of(tap)}"
            its_slot.discard(its_edit)
            assert torch.equal(self.logits(copied), plain), f"the copy after its edit at {name_of(tap)} left"
