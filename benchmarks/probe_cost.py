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
from trimtab.run.build import trained_parameters

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

    def attach(self) -> None:
        self.watch = watch(host_for(self.model), self.preset, optimizer=self.optimizer, every=1_000_000)

    def before(self, reading: bool) -> None:
        # Hooks go in before the step that is read, as they do after the step before it; outside the clock for both.
        if reading and not self.watch.due:
            self.watch._arm()

    def after_backward(self) -> None:
        self.watch.see_gradients()


def preset(name: str) -> type[Watched]:
    return type(name, (Watched,), {"preset": probes.PRESETS[name]})


class PlainHooks(Variant):
    """Norm and largest magnitude of inputs, outputs and their gradients, and of weights: one ``.item()`` a number."""

    def attach(self) -> None:
        self.numbers: dict[str, float] = {}
        self.on = False
        for name, module in self.model.named_modules():
            if name.endswith(ROLES):
                module.register_forward_hook(lambda m, a, y, name=name: self.see(name, a[0], y))
                module.register_full_backward_hook(lambda m, a, y, name=name: self.see(name + "g", a[0], y[0]))

    def before(self, reading: bool) -> None:
        self.on = reading

    def see(self, name: str, x: Tensor, y: Tensor) -> None:
        if self.on:
            for side, tensor in (("x", x), ("y", y)):
                self.numbers[f"{name}/{side}/l2"] = tensor.detach().norm().item()
                self.numbers[f"{name}/{side}/max"] = tensor.detach().abs().max().item()
                self.numbers[f"{name}/{side}/mean"] = tensor.detach().mean().item()
                self.numbers[f"{name}/{side}/bad"] = (~tensor.detach().isfinite()).sum().item()

    def after_backward(self) -> None:
        if self.on:
            for name, p in self.model.named_parameters():
                self.numbers[name] = p.detach().norm().item()
                self.numbers[name + "/grad"] = p.grad.norm().item() if p.grad is not None else 0.0
            self.old = [p.detach().clone() for p in self.model.parameters()]

    def after_step(self) -> None:
        if self.on:
            for (name, p), old in zip(self.model.named_parameters(), self.old, strict=True):
                self.numbers[name + "/update"] = (p.detach() - old).norm().item()


class Reductions(PlainHooks):
    """The same, kept on the device: one reduction a quantity, and one transfer at the end."""

    def attach(self) -> None:
        super().attach()
        self.kept: list[Tensor] = []

    def see(self, name: str, x: Tensor, y: Tensor) -> None:
        if self.on:
            for tensor in (x.detach(), y.detach()):
                self.kept += [tensor.norm(), tensor.abs().max(), tensor.mean(), (~tensor.isfinite()).sum()]

    def after_backward(self) -> None:
        if self.on:
            for p in self.model.parameters():
                self.kept += [p.detach().norm(), p.grad.norm()]  # pyright: ignore[reportOptionalMemberAccess]
            self.old = [p.detach().clone() for p in self.model.parameters()]

    def after_step(self) -> None:
        if self.on:
            self.kept += [(p.detach() - old).norm() for p, old in zip(self.model.parameters(), self.old, strict=True)]
            torch.stack([one.float() for one in self.kept]).tolist()
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
    "cheap": preset("cheap"),
    "standard": preset("standard"),
    "full": preset("full"),
    "hooks with .item()": PlainHooks,
    "one reduction a quantity": Reductions,
    "wandb.watch": WandbWatch,
}
CADENCE = {"cheap": 1, "standard": 10, "full": 50}


def measure(
    width: int, batch: int, context: int, rounds: int, *, compiled: bool
) -> dict[tuple[str, bool], list[float]]:
    names = ["unwatched", "cheap", "standard", "full"] if compiled else list(VARIANTS)
    variants = {name: VARIANTS[name](width, batch, context, compiled=compiled) for name in names}
    times: dict[tuple[str, bool], list[float]] = {}
    for turn in range(rounds + 2):
        for name, variant in variants.items():
            for reading in (False, True):
                if name in ("unwatched", "wandb.watch") and not reading:
                    continue
                seconds = variant.step(reading)
                if turn > 1:
                    times.setdefault((name, reading), []).append(seconds)
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
    parser.add_argument("--memory", nargs=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        name, *shape = options.memory
        peak(name, *map(int, shape))
        return
    for width in options.widths:
        times = measure(width, options.batch, options.context, options.rounds, compiled=options.compiled)
        plain = statistics.median(times["unwatched", True])
        kind = "compiled" if options.compiled else "eager"
        print(f"\nwidth {width}, 6 layers, {options.batch} x {options.context}, {kind}: {plain * 1e3:.0f} ms a step\n")
        print("| variant | a step that is read | between readings | amortised | peak memory |\n|---|---|---|---|---|")
        base = None if options.compiled else memory("unwatched", width, options.batch, options.context)
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
            print(f"| {name} | {ratio[True]:.3f}x | {spaced} | {amortised:.3f}x (every {every}) | {grown} |")


if __name__ == "__main__":
    main()
