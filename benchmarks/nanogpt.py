"""One training step of the baseline against nanoGPT's own model and AdamW step: same shape, threads and precision.

Needs a checkout of github.com/karpathy/nanoGPT: ``python benchmarks/nanogpt.py PATH``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import statistics
import sys
import time
from collections.abc import Callable

import torch

from trimtab import GPT, GPTConfig
from trimtab.interventions import GlobalClip
from trimtab.loop import Rules, train
from trimtab.optim import AdamW
from trimtab.parameters import trained_parameters


def nanogpt_step(path: str, config: GPTConfig, batch: torch.Tensor) -> Callable[[], None]:
    sys.path.insert(0, path)
    theirs = importlib.import_module("model")
    with contextlib.redirect_stdout(io.StringIO()):
        model = theirs.GPT(
            theirs.GPTConfig(
                block_size=config.context,
                vocab_size=config.vocab_size,
                n_layer=config.num_layers,
                n_head=config.num_heads,
                n_embd=config.width,
                dropout=0.0,
                bias=True,
            )
        )
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")

    def step() -> None:  # the body of nanoGPT's loop without logging, scaler and DDP
        _, loss = model(batch[:, :-1], batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def our_step(config: GPTConfig, batch: torch.Tensor) -> Callable[[], None]:
    model = GPT(config)
    clip = GlobalClip().start(dict(model.named_parameters()))
    optimizer = AdamW().build(trained_parameters(model), 1e-3)
    records = train(model, iter(lambda: (batch,), None), optimizer, rules=Rules(gradient=[clip]))
    return lambda: float(next(records).loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shapes = {
        "width 64, 4 layers, context 64, batch 32": (GPTConfig(), 32),
        "width 32, 2 layers, context 32, batch 32": (GPTConfig(width=32, num_layers=2, num_heads=2, context=32), 32),
        "width 256, 6 layers, context 128, batch 8": (GPTConfig(width=256, num_layers=6, context=128), 8),
    }
    print(
        f"{options.threads} thread(s), fp32, learned positions, tied, biases, GELU; medians of {options.rounds} "
        "interleaved rounds\n\n| shape | nanoGPT ms | trimtab ms | nanoGPT / trimtab | quartiles |\n"
        "|---|---|---|---|---|"
    )
    for name, (config, batch_size) in shapes.items():
        batch = torch.randint(0, 256, (batch_size, config.context + 1))
        steps = {"theirs": nanogpt_step(options.path, config, batch), "ours": our_step(config, batch)}
        times: dict[str, list[float]] = {who: [] for who in steps}
        for turn in range(options.rounds + 3):
            for who, step in steps.items():
                started = time.perf_counter()
                step()
                if turn >= 3:
                    times[who].append(time.perf_counter() - started)
        ratios = [a / b for a, b in zip(times["theirs"], times["ours"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {name} | {statistics.median(times['theirs']) * 1e3:.1f} | {statistics.median(times['ours']) * 1e3:.1f} "
            f"| {middle:.2f} | {low:.2f} to {high:.2f} |"
        )


if __name__ == "__main__":
    main()
