"""What probes cost per training step, as a ratio to the unwatched model in the same run, beside what people use today.

Every variant trains its own copy of the model; one step of each in turn, so that drift of the machine meets all alike.
A preset's amortised cost is that of its ordinary steps plus its reading spread over its cadence. Each variant's memory
is that of a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.optim import AdamW
from trimtab.parameters import trained_parameters

ROLES = ("qkv", "proj", "fc1", "fc2")


class Variant:
    """A model in training; ``reading`` asks for a step that is read."""

    def __init__(self, width: int, batch: int, context: int, *, compiled: bool = False) -> None:
        torch.manual_seed(0)
        config = GPTConfig(width=width, num_layers=6, num_heads=width // 64, context=context, tied=False)
        self.model = GPT(config)
        self.optimizer = AdamW().build(trained_parameters(self.model), 1e-3)
        self.tokens = torch.randint(0, 256, (batch, context + 1))
        self.called: Callable[..., Tensor] = self.model
        self.attach()
        if compiled:
            # Watched and unwatched models of one class in one process: without this the first graph serves them all.
            torch._dynamo.config.skip_nnmodule_hook_guards = False
            self.called = torch.compile(self.model)  # pyright: ignore[reportAttributeAccessIssue]

    def attach(self) -> None: ...

    def before(self, reading: bool) -> None: ...

    def after_backward(self) -> None: ...

    def after_step(self) -> None: ...

    def inside(self) -> float:
        return 0.0

    def step(self, reading: bool) -> float:
        self.before(reading)
        started = time.perf_counter()
        logits = self.called(self.tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), self.tokens[:, 1:].flatten())
        loss.backward()
        self.after_backward()
        self.optimizer.step()
        self.after_step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()
        return time.perf_counter() - started


class Watched(Variant):
    preset = probes.cheap
    fused = False

    def attach(self) -> None:
        self.watch = watch(
            host_for(self.model), self.preset, optimizer=self.optimizer, every=1_000_000, fused=self.fused
        )

    def before(self, reading: bool) -> None:
        # Hooks go in before the step that is read, as they do after the step before it; outside the clock for both.
        if reading and not self.watch.due:
            self.watch._arm()

    def after_backward(self) -> None:
        self.watch.see_gradients()

    def inside(self) -> float:
        return sum(self.watch.seconds.values())


def preset(name: str, *, fused: bool = False) -> type[Watched]:
    return type(name, (Watched,), {"preset": probes.PRESETS[name], "fused": fused})


class PlainHooks(Variant):
    """What a preset reads, by hooks with one ``.item()`` a number; attention is computed again with all its scores."""

    statistics = ("l2", "max", "mean", "bad")
    tensors = (*ROLES, "embedding", "norm", "head", "block")
    gradients = False
    attention = False
    parameters = True

    def attach(self) -> None:
        self.numbers: dict[str, float] = {}
        self.on = False
        for name, module in self.model.named_modules():
            kind = "block" if name.startswith("blocks.") and name.count(".") == 1 else name.rpartition(".")[2]
            if any(kind.endswith(each) for each in self.tensors):
                module.register_forward_hook(lambda m, a, y, name=name: self.see(name, a[0], y))
                if self.gradients and kind in ROLES:
                    module.register_full_backward_hook(lambda m, a, y, name=name: self.see(name + "g", a[0], y[0]))
            if self.attention and kind == "qkv":
                module.register_forward_hook(lambda m, a, y, name=name: self.see_attention(name, y))

    def before(self, reading: bool) -> None:
        self.on = reading

    def keep(self, name: str, number: Tensor) -> None:
        self.numbers[name] = number.item()

    def see(self, name: str, *tensors: Tensor) -> None:
        if not self.on:
            return
        for side, tensor in enumerate(tensors):
            x = tensor.detach()
            if not x.is_floating_point():
                continue
            of = {
                "l2": lambda x=x: x.norm(),
                "max": lambda x=x: x.abs().max(),
                "mean": lambda x=x: x.mean(),
                "bad": lambda x=x: (~x.isfinite()).sum(),
                "kurtosis": lambda x=x: (x - x.mean()).pow(4).mean() / x.var().square(),
            }
            for statistic in self.statistics:
                self.keep(f"{name}/{side}/{statistic}", of[statistic]())

    def see_attention(self, name: str, y: Tensor) -> None:
        if not self.on:
            return
        with torch.no_grad():
            heads = self.model.config.num_heads
            q, k, _ = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in y.detach().chunk(3, -1))
            scores = q @ k.mT * q.shape[-1] ** -0.5
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, -torch.inf)
            logs = scores.log_softmax(-1)
            entropy = -torch.where(hidden, 0.0, logs.exp() * logs).sum(-1).mean((0, 2))
            for head, largest in enumerate(scores.amax((0, 2, 3))):
                self.keep(f"{name}/{head}/max", largest)
                self.keep(f"{name}/{head}/entropy", entropy[head])

    def after_backward(self) -> None:
        if self.on:
            for name, p in self.model.named_parameters():
                if self.parameters:
                    self.keep(name, p.detach().norm())
                if p.grad is not None:
                    self.keep(name + "/grad", p.grad.norm())
            self.old = [p.detach().clone() for p in self.model.parameters()]

    def after_step(self) -> None:
        if self.on:
            for (name, p), old in zip(self.model.named_parameters(), self.old, strict=True):
                self.keep(name + "/update", (p.detach() - old).norm())


class StandardHooks(PlainHooks):
    statistics = (*PlainHooks.statistics, "kurtosis")
    gradients = True
    attention = True


class SummaryHooks(PlainHooks):
    statistics = ("l2", "max", "bad")
    tensors = ("block",)
    attention = True


class Reductions(PlainHooks):
    """The same as of ``cheap``, kept on the device: one reduction a quantity, and one transfer at the end."""

    def attach(self) -> None:
        super().attach()
        self.kept: list[Tensor] = []

    def keep(self, name: str, number: Tensor) -> None:
        self.kept.append(number.float())

    def after_step(self) -> None:
        super().after_step()
        if self.on:
            torch.stack(self.kept).tolist()
            self.kept = []


class WandbWatch(Variant):
    """``wandb.watch(log="all")``, offline: histograms of parameters and gradients."""

    def attach(self) -> None:
        import wandb

        self.wandb: Any = wandb
        os.environ["WANDB_SILENT"] = "true"
        self.run = wandb.init(mode="offline", dir=tempfile.mkdtemp(), project="cost")
        wandb.watch(self.model, log="all", log_freq=1)

    def after_step(self) -> None:
        self.run.log({})


VARIANTS: dict[str, type[Variant]] = {
    "unwatched": Variant,
    "summary": preset("summary"),
    "summary, fused": preset("summary", fused=True),
    "hooks, content of summary": SummaryHooks,
    "cheap": preset("cheap"),
    "cheap, fused": preset("cheap", fused=True),
    "hooks, content of cheap": PlainHooks,
    "the same, one transfer": Reductions,
    "standard": preset("standard"),
    "standard, fused": preset("standard", fused=True),
    "hooks, content of standard": StandardHooks,
    "full": preset("full"),
    "full, fused": preset("full", fused=True),
    "wandb.watch": WandbWatch,
}
INSIDE: dict[str, list[float]] = {}
"""Seconds that a step that is read spends in the meters of a watch: less noisy than a difference of whole steps."""
CADENCE = {
    "standard": 10,
    "standard, fused": 10,
    "hooks, content of standard": 10,
    "full": 50,
    "full, fused": 50,
}


def measure(
    width: int, batch: int, context: int, rounds: int, *, compiled: bool, only: list[str]
) -> dict[tuple[str, bool], list[float]]:
    names = [name for name, kind in VARIANTS.items() if kind is Variant or issubclass(kind, Watched) or not compiled]
    names = [name for name in names if name in ("unwatched", *only)]
    variants = {name: VARIANTS[name](width, batch, context, compiled=compiled) for name in names}
    times: dict[tuple[str, bool], list[float]] = {}
    for turn in range(rounds + 2):
        for name, variant in variants.items():
            for reading in (False, True):
                if name in ("unwatched", "wandb.watch") and not reading:
                    continue
                before = variant.inside()
                seconds = variant.step(reading)
                if turn > 1:
                    times.setdefault((name, reading), []).append(seconds)
                    if reading:
                        INSIDE.setdefault(name, []).append(variant.inside() - before)
    return times


def memory(name: str, width: int, batch: int, context: int) -> float:
    command = [sys.executable, __file__, "--memory", name, str(width), str(batch), str(context)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def peak(name: str, width: int, batch: int, context: int) -> None:
    variant = VARIANTS[name](width, batch, context)
    for turn in range(4):
        variant.step(turn % 2 == 1)
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), help="variants beside the unwatched model")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory", nargs=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        name, *shape = options.memory
        peak(name, *map(int, shape))
        return
    for width in options.widths:
        times = measure(
            width, options.batch, options.context, options.rounds, compiled=options.compiled, only=options.only
        )
        plain = statistics.median(times["unwatched", True])
        kind = "compiled" if options.compiled else "eager"
        print(f"\nwidth {width}, 6 layers, {options.batch} x {options.context}, {kind}: {plain * 1e3:.0f} ms a step\n")
        print("| variant | a step that is read | of it in meters | between readings | amortised | peak memory |")
        print("|---|---|---|---|---|---|")
        skip = options.compiled or options.no_memory
        base = None if skip else memory("unwatched", width, options.batch, options.context)
        for name in dict.fromkeys(name for name, _ in times):
            ratio = {
                reading: statistics.median(a / b for a, b in zip(own, times["unwatched", True], strict=True))
                for (who, reading), own in times.items()
                if who == name
            }
            every = CADENCE.get(name, 1)
            between = ratio.get(False)
            amortised = ratio[True] if between is None else between + (ratio[True] - between) / every
            grown = "" if base is None else f"{memory(name, width, options.batch, options.context) / base:.3f}x"
            spaced = f"{between:.3f}x" if between is not None else ""
            inside = f"{statistics.median(INSIDE[name]) / plain:.3f}" if any(INSIDE[name]) else ""
            print(f"| {name} | {ratio[True]:.3f}x | {inside} | {spaced} | {amortised:.3f}x (every {every}) | {grown} |")
        INSIDE.clear()


if __name__ == "__main__":
    main()
