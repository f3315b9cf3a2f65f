"""What each method costs per training step, as a ratio to the baseline in the same run; interleaved, medians."""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.interventions import GlobalClip
from trimtab.loop import Rules, train
from trimtab.optim import AdamW
from trimtab.parameters import trained_parameters

SHAPES = {
    "width 32, 2 layers, context 32, batch 32": (
        GPTConfig(width=32, num_layers=2, num_heads=2, context=32, positions="rotary", tied=False),
        32,
    ),
    "width 256, 6 layers, context 128, batch 8": (GPTConfig(width=256, num_layers=6, num_heads=4, context=128), 8),
    "width 512, 2 layers, context 128, batch 8": (GPTConfig(width=512, num_layers=2, num_heads=8, context=128), 8),
}


class Stepper:
    def __init__(self, slug: str, config: GPTConfig, batch_size: int) -> None:
        torch.manual_seed(0)
        model = GPT(config)
        methods.catalogue()[slug].install(host_for(model))
        optimizer = AdamW().build(trained_parameters(model), 1e-3)
        batch = torch.randint(0, config.vocab_size, (batch_size, config.context + 1))
        endless = iter(lambda: (batch,), None)
        clip = GlobalClip().start(dict(model.named_parameters()))
        self.records = train(model, endless, optimizer, rules=Rules(gradient=[clip]))

    def seconds(self, steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            float(next(self.records).loss)
        return (time.perf_counter() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(methods.catalogue()), help="the baseline is always timed")
    parser.add_argument("--widths", nargs="+", type=int, default=[32, 256, 512])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for shape, (config, batch_size) in SHAPES.items():
        if config.width not in options.widths:
            continue
        steppers = {slug: Stepper(slug, config, batch_size) for slug in dict.fromkeys(["baseline", *options.methods])}
        times: dict[str, list[float]] = {slug: [] for slug in steppers}
        for turn in range(options.rounds + 1):
            for slug, stepper in steppers.items():
                elapsed = stepper.seconds(options.steps)
                if turn:
                    times[slug].append(elapsed)
        print(
            f"\n{shape}, {options.threads} thread(s), fp32: ms a step and ratio to the baseline, medians of "
            f"{options.rounds} interleaved rounds of {options.steps} steps\n"
        )
        print("| method | ms | ratio | quartiles of the ratio |\n|---|---|---|---|")
        for slug, own in times.items():
            ratios = [a / b for a, b in zip(own, times["baseline"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"| {slug} | {statistics.median(own) * 1e3:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} |")


if __name__ == "__main__":
    main()
