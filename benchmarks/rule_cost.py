"""What the rules and optimizers cost, as ratios of equal work in one run: ``python benchmarks/rule_cost.py [THREADS]``.

In every round each case makes one step, in a new order; a ratio is that of two steps of the same round. The table gives
the median ratio and its quartiles.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.gradients import Gradients
from trimtab.interventions import AdaGC, GlobalClip, QKClip, UpdateClip, ZClip, ZLoss
from trimtab.loop import Rules, train
from trimtab.loss import losses_of
from trimtab.optim import AdamW, Muon
from trimtab.parameters import optimizer_for
from trimtab.rules import start, trained_of

Case = Callable[[], float]  # makes one step and gives its seconds


def timed(action: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def training(config: GPTConfig, rules: Sequence[Any], *, batch: int, accumulate: int = 1, method: str = "") -> Case:
    """Steps of a training with these rules."""
    torch.manual_seed(0)
    model = GPT(config)
    if method:
        methods.catalogue()[method].install(host_for(model))
    optimizer = optimizer_for(model, AdamW(), 1e-3)
    tokens = [torch.randint(config.vocab_size, (batch, config.context + 1)) for _ in range(accumulate)]
    steps = train(model, iter(lambda: tokens, None), optimizer, rules=start(rules, trained_of(model, optimizer)))
    return lambda: timed(lambda: next(steps))


def measured(title: str, base: str, cases: dict[str, Case], rounds: int) -> None:
    """Print the ratios of all cases to the base."""
    for case in cases.values():
        case(), case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for _ in range(rounds):
        random.shuffle(names)
        for name in names:
            seconds[name].append(cases[name]())
    print(f"\n{title}; {rounds} rounds, {base}: {1000 * statistics.median(seconds[base]):.0f} ms\n")
    print("| case | ratio, median [quartiles] |\n|---|---|")
    for name in cases:
        if name != base:
            ratios = sorted(one / other for one, other in zip(seconds[name], seconds[base], strict=True))
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"| {name} | {middle:.3f} [{low:.3f}, {high:.3f}] |", flush=True)


def rules_of_a_step() -> None:
    config = GPTConfig(vocab_size=4096, context=256, num_layers=4, num_heads=4, width=256, tied=False)
    clip = GlobalClip()
    cases = {
        "global_clip": training(config, [clip], batch=16),
        "no rule": training(config, [], batch=16),
        "ada_gc": training(config, [AdaGC(warmup_steps=1)], batch=16),
        "z_clip": training(config, [ZClip(warmup_steps=2)], batch=16),
        "global_clip, qk_clip, a step without maxima": training(config, [clip, QKClip(every=10**6)], batch=16),
        "global_clip, qk_clip, a step with maxima": training(config, [clip, QKClip()], batch=16),
        "global_clip, z_loss": training(config, [clip, ZLoss()], batch=16),
        "global_clip, update_clip": training(config, [clip, UpdateClip()], batch=16),
    }
    measured("A step of 16 x 256 tokens, width 256, 4 layers, vocabulary 4,096", "global_clip", cases, 15)


def pc_layer() -> None:
    for width, batch in ((256, 16), (512, 16)):
        config = GPTConfig(vocab_size=256, context=256, num_layers=2, num_heads=4, width=width)
        cases = {
            "baseline": training(config, [GlobalClip()], batch=batch, accumulate=4),
            "pc_layer": training(config, [GlobalClip()], batch=batch, accumulate=4, method="pc_layer"),
        }
        title = f"A step of 4 micro-batches of {batch} x 256 tokens, width {width}, 2 layers"
        measured(title, "baseline", cases, 7)


def stepping(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> Case:
    for p in parameters:
        p.grad = torch.randn_like(p)
    return lambda: timed(optimizer.step)


def muon() -> None:
    import pytorch_optimizer

    shapes = [(768, 256), (256, 256), (1024, 256), (256, 1024)] * 4

    def matrices() -> list[nn.Parameter]:
        torch.manual_seed(0)
        return [nn.Parameter(torch.randn(shape)) for shape in shapes]

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrices = nn.ParameterList(matrices())

    ours, theirs, torchs = Holder(), matrices(), matrices()
    from trimtab.optim.matrices import OrthogonalMomentum

    cases = {
        "pytorch_optimizer": stepping(
            pytorch_optimizer.Muon([{"params": theirs, "use_muon": True}], lr=1e-2, ns_steps=Muon().ns_steps), theirs
        ),
        "torch.optim.Muon": stepping(torch.optim.Muon(torchs, lr=1e-2, ns_steps=Muon().ns_steps), torchs),
        "trimtab": stepping(OrthogonalMomentum([{"params": list(ours.matrices)}], 1e-2), list(ours.matrices)),
    }
    measured("A step of Muon on 16 matrices, width 256, 5 Newton-Schulz iterations", "pytorch_optimizer", cases, 15)


def rules_off() -> None:
    config = GPTConfig(vocab_size=16384, context=64, num_layers=12, num_heads=8, width=512, tied=False)
    torch.manual_seed(0)
    model, plain = GPT(config), GPT(config)
    count = sum(p.numel() for p in model.parameters())
    optimizer = optimizer_for(model, AdamW(), 1e-3)
    other = torch.optim.AdamW(plain.parameters(), lr=1e-3, fused=True)
    rules = Rules()
    parameters = list(model.parameters())
    for p in (*parameters, *plain.parameters()):
        p.grad = torch.randn_like(p)

    def step() -> None:
        for rule in rules.gradient:
            rule(1, {})
        optimizer.step()
        for rule in rules.update:
            rule(1, {})

    cases = {"torch's fused AdamW": lambda: timed(other.step), "trimtab, every rule off": lambda: timed(step)}
    measured(f"The optimizer part of a step of {count / 1e6:.0f} million parameters", "torch's fused AdamW", cases, 15)


def parts_alone() -> None:
    """The difference that a rule makes to the part of a step that it changes, divided by the time of a whole step.

    The noise of forward and backward, which both sides share, does not enter.
    """
    config = GPTConfig(vocab_size=4096, context=256, num_layers=4, num_heads=4, width=256, tied=False)
    torch.manual_seed(0)
    model = GPT(config)
    optimizer = optimizer_for(model, AdamW(), 1e-3)
    tokens = torch.randint(config.vocab_size, (16, config.context + 1))
    whole = training(config, [GlobalClip()], batch=16)
    step = statistics.median(whole() for _ in range(7))
    losses_of(model, tokens, (), 1)[0].backward()
    parameters = dict(model.named_parameters())
    trained = trained_of(model, optimizer)
    logits = torch.randn(16, config.context, config.vocab_size, requires_grad=True)
    fixed = _Fixed(logits)

    def calling(rule: Any) -> Case:
        running = start([rule], trained).gradient[0]
        return lambda: timed(lambda: running(1, Gradients(parameters)))

    def loss_with(terms: Sequence[Any]) -> Case:
        running = start(terms, trained).loss_terms

        def backward() -> None:
            loss, penalty = losses_of(fixed, tokens, running, 1)
            (loss if penalty is None else loss + penalty).backward()

        return lambda: timed(backward)

    title = f"Difference of the changed part alone, as a share of a whole step of {1000 * step:.0f} ms"
    print(f"\n{title}; 200 or 30 rounds\n")
    print("| case | difference, median [95 % interval of the median] |\n|---|---|")
    for title, ours, base, rounds in (
        ("z_clip against global_clip", calling(ZClip(warmup_steps=2)), calling(GlobalClip()), 200),
        ("ada_gc against global_clip", calling(AdaGC(warmup_steps=1)), calling(GlobalClip()), 200),
        ("z_loss against no term", loss_with([ZLoss()]), loss_with([]), 30),
    ):
        for _ in range(3):
            ours(), base()
        differences = sorted((ours() - base()) / step for _ in range(rounds))
        spread = 0.98 * math.sqrt(rounds)  # order statistics around the median
        low, high = (differences[round(rounds / 2 + sign * spread)] for sign in (-1, 1))
        print(f"| {title} | {statistics.median(differences):+.4f} [{low:+.4f}, {high:+.4f}] |", flush=True)


class _Fixed(nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    random.seed(0)
    parts_alone()
    rules_of_a_step()
    muon()
    rules_off()
    pc_layer()
