"""The demo's question asked with nanoGPT: its ``train.py`` over 17 half-octave learning rates x 3 seeds for each arm.

Needs a checkout of nanoGPT: ``python benchmarks/time_to_answer.py PATH``. One run of this file measures on one machine

- the time of a run of nanoGPT: whole processes of its ``train.py`` at the demo's shape, text, steps and batch, two at a
  time with one thread each, over the rates of the grid. It evaluates at the start and the end, a run of the demo 25
  times on as many held-out sequences;
- what the grid answers: the limits from a grid of our own runs, with our estimator, which a user of nanoGPT would not
  have;
- the demo with budgets of several sizes, each as a study of its own, to find the least that answers as precisely.

The learned positions and the seed of nanoGPT's loop stay as they are: neither changes its time.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.config import apply_settings, load_toml
from trimtab.kinds.max_lr.findings import MAIN, LimitFindings
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.run.spec import TrainingProtocol
from trimtab.study.driver import run_study
from trimtab.study.executors.processes import Processes
from trimtab.study.kind import read_any_study

DEMO = Path(__file__).parents[1] / "src/trimtab/presets/demo.toml"
SEEDS = 3
RATES = 17
GRID = (
    'learning_rates.low="2^-6"',
    'learning_rates.high="2^2"',
    "learning_rates.octaves_apart=0.5",
    f"search.sweep_seeds={SEEDS}",
    "search.replicates=0",
    f"search.most_runs={RATES * SEEDS}",
)


@dataclass(frozen=True)
class Answer:
    """What a study cost and how precise it is.

    Attributes:
        runs: number of runs.
        seconds: wall time of the command on two workers.
        widths: of the 95 % intervals of all arms inside the tested range, in octaves, by edge.
    """

    runs: int
    seconds: float
    widths: dict[str, list[float]]

    @property
    def mean_widths(self) -> dict[str, float]:
        """The geometric mean over the arms, by edge."""
        return {edge: statistics.geometric_mean(widths) for edge, widths in self.widths.items()}


def demo(settings: Sequence[str] = (), arms: Sequence[str] = ()) -> MaxLrSpec:
    """The demo with other settings, and with some of its arms only."""
    raw = load_toml(DEMO)
    if arms:
        raw["arms"] = {name: raw["arms"][name] for name in arms}
    spec = read_any_study(apply_settings(raw, settings), str(DEMO))
    assert isinstance(spec, MaxLrSpec)
    return spec


def answer_of(spec: MaxLrSpec, folder: Path) -> Answer:
    """Carry a study out from nothing, on two workers."""
    started = time.perf_counter()
    findings = run_study(spec, folder, Processes(workers=2))
    seconds = time.perf_counter() - started
    assert isinstance(findings, LimitFindings)
    widths: dict[str, list[float]] = {}
    for arm in findings.arms.values():
        for edge, criterion in MAIN.items():
            limit = arm.criteria[criterion].breaks.lr50
            low, high = limit.low or arm.tested[0], limit.high or arm.tested[1]
            widths.setdefault(edge, []).append(math.log2(high / low))
    return Answer(len(findings.runs), seconds, widths)


def write_text(protocol: TrainingProtocol, folder: Path) -> None:
    """The demo's text as nanoGPT reads it."""
    folder.mkdir(parents=True)
    data = protocol.data.load()
    np.asarray(data.train, dtype=np.uint16).tofile(folder / "train.bin")
    np.concatenate([np.asarray(part, dtype=np.uint16) for part in data.held_out.values()]).tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": protocol.data.vocab_size}))


def seconds_of_nanogpt(checkout: Path, protocol: TrainingProtocol, rates: Sequence[float]) -> float:
    """Wall time of a run of ``train.py``: that of all runs, two processes at a time, over their number."""
    model, training = protocol.model, protocol.training
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        for name in ("train.py", "model.py", "configurator.py"):
            shutil.copy(checkout / name, work)
        write_text(protocol, work / "data" / "demo")
        settings = {
            "dataset": "demo",
            "device": "cpu",
            "dtype": "float32",
            "compile": False,
            "log_interval": 100,
            "gradient_accumulation_steps": 1,
            "batch_size": training.batch_size,
            "block_size": model.context,
            "n_layer": model.num_layers,
            "n_head": model.num_heads,
            "n_embd": model.width,
            "max_iters": training.steps,
            "lr_decay_iters": training.steps,
            "warmup_iters": protocol.schedule.warmup_steps,
            "eval_interval": training.steps,
            "eval_iters": protocol.evaluation.num_sequences // training.batch_size,
        }

        def run(numbered: tuple[int, float]) -> None:
            number, rate = numbered
            own = {**settings, "learning_rate": rate, "min_lr": 0.1 * rate, "out_dir": f"out-{number}"}
            command = [sys.executable, "train.py", *(f"--{key}={value}" for key, value in own.items())]
            threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            subprocess.run(command, cwd=work, env={**os.environ, **threads}, check=True, stdout=subprocess.DEVNULL)

        run((-1, rates[0]))  # the first process reads torch from the disk
        started = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, enumerate(rates)))
        return (time.perf_counter() - started) / len(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--arms", nargs="+", default=["baseline", "qk_norm", "qk_norm_cap", "qkv_norm"])
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 20, 24])
    options = parser.parse_args()
    rates = [float(2.0 ** (-6 + 0.5 * step)) for step in range(RATES)]
    per_run = seconds_of_nanogpt(options.path, demo().protocol, rates)
    runs = RATES * SEEDS * len(options.arms)
    theirs = per_run * runs
    print(f"nanoGPT: {per_run:.2f} s a run with two at a time, so {theirs:.0f} s for {runs} runs", flush=True)
    print("\n| search | runs | seconds | width, quality | width, collapse | nanoGPT's grid / this |")
    print("|---|---|---|---|---|---|")
    searches = {f"trimtab, at most {most} runs an arm": [f"search.most_runs={most}"] for most in options.budgets}
    with tempfile.TemporaryDirectory() as place:
        for name, settings in {**searches, "trimtab, the grid": GRID}.items():
            answer = answer_of(demo(settings, options.arms), Path(place) / name.replace(" ", "-"))
            quality, collapse = (answer.mean_widths[edge] for edge in ("quality", "collapse"))
            print(
                f"| {name} | {answer.runs} | {answer.seconds:.0f} | {quality:.2f} | {collapse:.2f} | "
                f"{theirs / answer.seconds:.1f}x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
