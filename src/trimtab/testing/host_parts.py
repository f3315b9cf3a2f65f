"""What a host promises about its parts: weights with documented shapes, which can be read and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from unittest import SkipTest

import torch

from trimtab.host import Host, Part, Site, Tap
from trimtab.testing.host_laboratory import SENSITIVITY, HostLaboratory, name_of

PROJECTED = {Part.Q: Site.QUERY, Part.K: Site.KEY, Part.V: Site.VALUE}


class PartContract(HostLaboratory):
    """The tests of parts.

    Attributes:
        bias_or_norm_between: why a head whose rows of Q, K or V are zero is not zero at its site, such as a bias or a
            norm that the family has there; empty where it is zero.
    """

    bias_or_norm_between: str = ""

    def test_every_weight_has_the_shape_out_in(self) -> None:
        """Checked against the tensors that pass its module; parts that share a matrix have all its rows together."""
        host, _ = self.start()
        views = host.find_parts()
        assert views, f"{host.family} offers no parts"
        passed = self.passed([view.module for view in views], host)
        rows = Counter[int]()
        for view in views:
            rows[id(view.module)] += view.weight.shape[0]
        for view in views:
            assert id(view.module) in passed, f"{name_of(view)} is not called in a forward pass"
            given, returned = passed[id(view.module)]
            if view.weight.ndim == 1:
                assert view.weight.shape[0] == returned.shape[-1], name_of(view)
            elif view.part is Part.EMBEDDING:
                assert view.weight.shape[1] == returned.shape[-1], name_of(view)
            else:
                shape = (rows[id(view.module)], view.weight.shape[1])
                expected = (returned.shape[-1], given.shape[-1])
                assert shape == expected, f"{name_of(view)}: {shape}, but its module maps {expected[::-1]}"

    def test_writing_a_part_changes_that_part_alone_and_the_output(self) -> None:
        """The written weight is read back; other parts of a shared matrix keep their weights."""
        host, plain = self.start()
        views = host.find_parts()
        for view in views:
            tied = [v for v in views if v.module is not view.module and v.module.weight is view.module.weight]
            others = [v for v in views if v is not view and v not in tied]
            kept, was = [v.weight.detach().clone() for v in others], view.weight.detach().clone()
            value = was + 0.1 * torch.randn(was.shape, generator=torch.Generator().manual_seed(2)).to(was)
            view.write(value)
            assert torch.equal(view.weight, value), f"{name_of(view)} reads back another weight"
            for other, weight in zip(others, kept, strict=True):
                assert torch.equal(other.weight, weight), f"writing {name_of(view)} changed {name_of(other)}"
            change = float((self.logits(host) - plain).abs().max() / plain.abs().max())
            assert change > SENSITIVITY, f"writing {name_of(view)} changes the logits by {change:.1e} of their largest"
            view.write(was)
            assert torch.equal(self.logits(host), plain), f"writing {name_of(view)} back does not restore the logits"

    def test_a_head_whose_rows_are_zero_is_the_same_for_every_token_at_its_site(self) -> None:
        """The rows of Q, K and V are in the order of the heads at Site.QUERY, KEY and VALUE."""
        for part, host, tap, head in self.zeroed_heads():
            x_BTK = self.seen(tap, host)[:, head]
            spread = float((x_BTK - x_BTK[:1, :1]).abs().max())
            assert spread <= 1e-6, (
                f"head {head} of {part} at {name_of(tap)} still depends on the token, by {spread:.1e}"
            )

    def test_a_head_whose_rows_are_zero_is_zero_at_its_site_and_the_others_stay(self) -> None:
        """Skipped where the family has a bias or a norm between the projection and the site."""
        if self.bias_or_norm_between:
            raise SkipTest(self.bias_or_norm_between)
        for part, host, tap, head in self.zeroed_heads():
            fresh, _ = self.start()
            plain = self.seen(next(t for t in fresh.taps(tap.site) if t.layer == tap.layer), fresh)
            x_BHTK = self.seen(tap, host)
            assert not x_BHTK[:, head].any(), f"head {head} of {part} at {name_of(tap)}"
            others = [h for h in range(tap.num_heads) if h != head]
            torch.testing.assert_close(x_BHTK[:, others], plain[:, others], rtol=0, atol=1e-6)

    def zeroed_heads(self) -> Sequence[tuple[Part, Host, Tap, int]]:
        """Hosts in which the rows of one head are zero: first and last head of Q, K and V in each layer.

        Raises:
            SkipTest: if the host offers no such part together with its site.
        """
        zeroed: list[tuple[Part, Host, Tap, int]] = []
        first, _ = self.start()
        sites = {(tap.site, tap.layer): tap for tap in first.find_taps()}
        for number, view in enumerate(first.find_parts()):
            tap = sites.get((PROJECTED[view.part], view.layer)) if view.part in PROJECTED else None
            for head in {0, tap.num_heads - 1} if tap is not None else ():
                host, _ = self.start()
                its_view = host.find_parts()[number]
                its_tap = next(t for t in host.taps(PROJECTED[view.part]) if t.layer == view.layer)
                weight = its_view.weight.detach().clone()
                assert weight.shape[0] == its_tap.num_heads * its_tap.width, f"rows of {name_of(view)}"
                weight[head * its_tap.width : (head + 1) * its_tap.width] = 0
                its_view.write(weight)
                zeroed.append((view.part, host, its_tap, head))
        if not zeroed:
            raise SkipTest(f"{first.family} offers no part of Q, K and V together with its site")
        return zeroed
