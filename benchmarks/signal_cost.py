"""What TEV and gradient variance cost per training step, as ratios to the unwatched model in the same run.

Every variant trains its own copy of the model with the same micro-batches; one step of each in turn, so that drift of
the machine meets all alike. Each ratio is taken between steps of one turn. The cost of splitting a batch is shown as
well: gradient variance needs micro-batches, and a run that had none pays for them first.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.optim import AdamW
from trimtab.parameters import trained_parameters

SIGNALS = {
    "unwatched": (),
    "TEV": ("tev",),
    "gradient variance": ("variance",),
    "both": ("tev", "variance"),
    "training map": ("training_map",),
}
UNSPLIT = "unwatched, one batch"


class Training:
    """A model, an optimizer, perhaps a watch that reads when told."""

    def __init__(
        self, width: int, vocab_size: int, batch: int, context: int, split: int, slugs: tuple[str, ...]
    ) -> None:
        torch.manual_seed(0)
        config = GPTConfig(
            width=width, num_layers=6, num_heads=width // 64, context=context, vocab_size=vocab_size, tied=False
        )
        self.model = GPT(config)
        self.optimizer = AdamW().build(trained_parameters(self.model), 1e-3)
        self.tokens = torch.randint(0, vocab_size, (batch, context + 1)).chunk(split)
        self.watch = None
        if slugs:
            preset = probes.named(*slugs)
            self.watch = watch(host_for(self.model), preset, optimizer=self.optimizer, every=1_000_000)

    def step(self, reading: bool) -> float:
        if self.watch is not None and reading and not self.watch.due:
            self.watch._arm()
        started = time.perf_counter()
        for tokens in self.tokens:
            logits = self.model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / len(self.tokens)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--split", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = (options.width, options.vocab_size, options.batch, options.context)
    variants = {name: Training(*shape, options.split, slugs) for name, slugs in SIGNALS.items()}
    variants[UNSPLIT] = Training(*shape, 1, ())
    times: dict[str, list[float]] = {name: [] for name in variants}
    # Beside the ratio of whole steps, in which a signal of 0.01 % drowns, the time that the readings themselves took.
    own: dict[str, float] = {}
    for turn in range(options.rounds + 2):
        for name, variant in variants.items():
            seconds = variant.step(reading=True)
            if turn == 1 and variant.watch is not None:
                variant.watch.seconds.clear()
            if turn > 1:
                times[name].append(seconds)
    for name, variant in variants.items():
        if variant.watch is not None:
            own[name] = sum(variant.watch.seconds.values()) / options.rounds
    plain = statistics.median(times["unwatched"])
    tokens = f"{options.batch} x {options.context} tokens in {options.split} micro-batches"
    print(f"width {options.width}, 6 layers, vocabulary {options.vocab_size}, {tokens}, {options.threads} threads,")
    print(f"{options.rounds} rounds: {plain * 1e3:.0f} ms a step\n")
    print("| variant | a step that is read | 95 % interval | by its own clock | every 10 steps, by its own clock |")
    print("|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for name, taken in times.items():
        ratios = np.array(taken) / np.array(times["unwatched"])
        drawn = np.median(ratios[rng.integers(len(ratios), size=(2000, len(ratios)))], axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        share = own.get(name, 0.0) / plain
        clock = f"{1 + share:.4f}x | {1 + share / 10:.5f}x" if name in own else " | "
        print(f"| {name} | {np.median(ratios):.3f}x | [{low:.3f}, {high:.3f}] | {clock} |")


if __name__ == "__main__":
    main()
