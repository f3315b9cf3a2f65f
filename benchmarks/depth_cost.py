"""Does a deep run cost what its layers cost? One run of 48 layers against twelve of 4, same steps, one core."""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from method_cost import Stepper

from trimtab.models.gpt import GPTConfig
from trimtab.models.sizes import SIZES

BATCH_SIZE = 8
SHALLOW, DEEP = 4, 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--methods", nargs="+", default=["baseline", "mlra", "sigma_reparam"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    deep = SIZES["deep-48"]
    shallow = GPTConfig(
        vocab_size=deep.vocab_size, context=deep.context, num_layers=SHALLOW, num_heads=deep.num_heads, width=deep.width
    )
    factor = DEEP // SHALLOW
    print(
        f"width {deep.width}, context {deep.context}, batch {BATCH_SIZE}, 1 thread, fp32; medians of {options.rounds}"
    )
    print(
        f"\n| method | {SHALLOW} layers, ms | {DEEP} layers, ms | over {factor} x | quartiles |\n|---|---|---|---|---|"
    )
    for slug in options.methods:
        few, many = Stepper(slug, shallow, BATCH_SIZE), Stepper(slug, deep, BATCH_SIZE)
        few.seconds(2), many.seconds(1)
        times: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            started = time.perf_counter()
            few.seconds(factor)
            middle = time.perf_counter()
            many.seconds(1)
            times.append((middle - started, time.perf_counter() - middle))
        ratios = [one / twelve for twelve, one in times]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        shown, whole = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        print(f"| {slug} | {shown / factor:.1f} | {whole:.1f} | {ratio:.2f} | {low:.2f} to {high:.2f} |")


if __name__ == "__main__":
    main()
