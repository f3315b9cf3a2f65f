"""What the contract of hosts needs to look into a host: fresh hosts, logits, and what passes at a place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn
from typing_extensions import override

from trimtab.host import Host, Part, PartView, Site, Slot, Tap
from trimtab.testing.families import logits_of

TOLERANCE = 1e-5
SENSITIVITY = 1e-6  # of the largest logit: the least change that shows that an edit reaches the output
PER_HEAD = frozenset({Site.QUERY, Site.KEY, Site.VALUE, Site.QUERY_ROTATED, Site.KEY_ROTATED, Site.HEAD_OUT})
PER_PAIR = frozenset({Site.SCORES, Site.WEIGHTS})


class HostLaboratory(ABC):
    """Fresh hosts of one family, and what happens in their forward passes."""

    @abstractmethod
    def make_host(self) -> Host:
        """A fresh host with random weights, the same ones on every call."""

    def tokens(self, host: Host) -> Tensor:
        """Token ids (B, T) that the model takes."""
        return torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))

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
        """The logits of one forward pass without gradients."""
        with torch.no_grad():
            return logits_of(host.model, self.tokens(host))

    def shape(self, tap: Tap, host: Host) -> tuple[int, ...]:
        """The shape that the comments of ``Site`` document; fails where width or heads are missing."""
        B, T = self.tokens(host).shape[:2]
        assert (tap.num_heads > 0) == (tap.site in PER_HEAD | PER_PAIR), f"num_heads of {name_of(tap)}"
        assert (tap.width == 0) == (tap.site in PER_PAIR), f"width of {name_of(tap)}"
        if tap.site in PER_PAIR:
            return B, tap.num_heads, T, T
        return (B, tap.num_heads, T, tap.width) if tap.site in PER_HEAD else (B, T, tap.width)

    def seen(self, tap: Tap, host: Host) -> Tensor:
        """The tensor that passes a site."""
        seen: list[Tensor] = []
        unwatch = tap.slot.watch(lambda before, after: seen.append(after))
        self.logits(host)
        unwatch()
        return seen[0]

    def passed(self, modules: Sequence[nn.Module], host: Host) -> dict[int, tuple[Tensor, Tensor]]:
        """The first tensor that each module is given and the first that it returns, by the id of the module."""
        passed: dict[int, tuple[Tensor, Tensor]] = {}

        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            passed[id(module)] = given[0], output[0] if isinstance(output, tuple) else output

        unique = {id(module): module for module in modules}
        handles = [module.register_forward_hook(keep, with_kwargs=True) for module in unique.values()]
        self.logits(host)
        for handle in handles:
            handle.remove()
        return passed


class Copy(nn.Module):
    """An identity edit that gives a new tensor."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class Gain(nn.Module):
    """An edit with a different factor for every channel, so that a later norm cannot undo it."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.5))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.strength.to(x) * torch.linspace(0, 2, x.shape[-1], dtype=x.dtype, device=x.device))


def taps_of(host: Host) -> Sequence[Tap]:
    """The taps of a host.

    Raises:
        SkipTest: if it offers no sites.
    """
    if not host.find_taps():
        raise SkipTest(f"{host.family} offers no sites")
    return host.find_taps()


def name_of(place: Tap | PartView) -> str:
    """A site or part with its layer, for messages."""
    kind = place.site if isinstance(place, Tap) else place.part
    return f"{kind} of layer {place.layer}"


def assert_close(logits: Tensor, expected: Tensor, what: str) -> None:
    """Fail if ``what`` changed the logits beyond rounding."""
    error = float((logits - expected).abs().max())
    assert error <= TOLERANCE, f"{what} changes the logits by {error:.1e}"


def trace_of(model: nn.Module) -> set[str]:
    """Everything that an edit could leave behind in a model, as lines of text."""
    lines = {f"key {key}" for key in model.state_dict()}
    for name, module in model.named_modules():
        lines |= {f"{name}: attribute {key}" for key in vars(module)} | {f"{name}: is a {type(module).__name__}"}
        for key, hooks in vars(module).items():
            if "_hooks" in key and isinstance(hooks, dict):
                lines.add(f"{name}: {len(hooks)} of {key}")
        if isinstance(module, Slot):
            lines.add(f"{name}: {len(module.watchers)} watchers")
    return lines


def assert_no_trace(host: Host, before: set[str], what: str) -> None:
    """Fail if ``what`` left something in the model, or took something out of it, since ``trace_of``."""
    after = trace_of(host.model)
    assert after == before, f"{what} leaves {sorted(after - before)}, takes {sorted(before - after)}"
