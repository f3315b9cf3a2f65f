"""Throughput of populations against single runs: ``python benchmarks/population.py [--device cuda] [--widths 64]``.

The unit is steps of one run per second. A row is printed after every cell, so that a measurement that is cut off keeps
what it has. The base is one process per run, with ``--processes`` of them at a time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Sequence

import torch

from trimtab.loop import autocast, train
from trimtab.run.build import build, build_optimizer, start_rules
from trimtab.run.execute import training_batches
from trimtab.run.population import _Population
from trimtab.run.reading import read_run
from trimtab.run.spec import RunSpec


def run_of(width: int, seed: int, options: argparse.Namespace, precision: str, *, steps: int) -> RunSpec:
    return read_run(
        {
            "learning_rate": 2.0**-8,
            "seeds": {"init": seed, "data": seed, "other": seed},
            "model": {"width": width, "num_heads": width // 32, "num_layers": 4, "context": options.context},
            "training": {
                "steps": steps,
                "batch_size": options.batch,
                "device": options.device,
                "precision": precision,
                "population": True,
            },
            "schedule": {"warmup_steps": 1},
        },
        "benchmark",
    )


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def single(spec: RunSpec, steps: int) -> float:
    """Steps per second of one run in this process."""
    device = torch.device(spec.protocol.training.device)
    model = build(spec, device)
    optimizer = build_optimizer(model, spec)
    data = spec.protocol.data.load()
    batches = training_batches(spec.protocol, data, 0, device)
    precision = spec.protocol.training.precision
    times: list[float] = []
    last = time.perf_counter()
    for record in train(model, batches, optimizer, rules=start_rules(model, optimizer, spec), precision=precision):
        float(record.loss)
        now = time.perf_counter()
        times.append(now - last)
        last = now
        if len(times) == steps:
            break
    return 1 / statistics.median(times[2:])


def together(specs: Sequence[RunSpec], steps: int) -> float:
    """Steps of all runs per second as one stack."""
    population = _Population(specs, specs[0].protocol.data.load())
    training = specs[0].protocol.training
    device = torch.device(training.device)
    streams = [training_batches(spec.protocol, population.data, spec.seeds.data, device) for spec in specs]
    active = torch.ones(len(specs), dtype=torch.bool, device=device)
    times: list[float] = []
    for step, pieces in enumerate(zip(*streams, strict=True), start=1):
        begun = time.perf_counter()
        losses, _ = population.stack.losses(
            torch.stack([piece[0] for piece in pieces]), step, autocast(training.precision, device)
        )
        losses.sum().backward()
        population._apply_rules(step)
        population.optimizer.step(1.0, active)
        population.stack.zero_grad()
        wait(training.device)
        times.append(time.perf_counter() - begun)
        if len(times) == steps:
            break
    return len(specs) / statistics.median(times[2:])


def _worker(width: int, options: argparse.Namespace, precision: str, found: multiprocessing.Queue[float]) -> None:
    torch.set_num_threads(1)
    found.put(single(run_of(width, 0, options, precision, steps=options.steps + 1), options.steps))


def in_processes(width: int, options: argparse.Namespace, precision: str) -> float:
    """Steps of all runs per second, one process for each run."""
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    workers = [
        context.Process(target=_worker, args=(width, options, precision, found)) for _ in range(options.processes)
    ]
    for worker in workers:
        worker.start()
    rates = [found.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 256, 512])
    parser.add_argument("--sizes", type=int, nargs="*", default=[4, 16, 64, 256])
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, one thread"
    print(f"torch {torch.__version__}, {name}; {options.batch} x {options.context} tokens a step of a run, 4 layers\n")
    print(
        "| width | precision | runs | steps of a run per second | against one process per run |\n|---|---|---|---|---|"
    )
    for width in options.widths:
        for precision in options.precisions:
            base = in_processes(width, options, precision)
            print(f"| {width} | {precision} | {options.processes} processes | {base:.1f} | 1 |", flush=True)
            for size in options.sizes:
                specs = [run_of(width, seed, options, precision, steps=options.steps + 1) for seed in range(size)]
                try:
                    rate = together(specs, options.steps)
                except torch.cuda.OutOfMemoryError:
                    print(f"| {width} | {precision} | stack of {size} | out of memory | |", flush=True)
                    continue
                print(f"| {width} | {precision} | stack of {size} | {rate:.1f} | {rate / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
