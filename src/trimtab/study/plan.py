"""Estimate the runs, hours and disk space of a study before it starts, from a few timed steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import islice, pairwise

import torch

from trimtab.config import ConfigError, printable
from trimtab.data.batches import held_out_batch
from trimtab.loop import train
from trimtab.loss import held_out_loss
from trimtab.run.build import build, build_optimizer
from trimtab.run.compiling import LAUNCH_SECONDS
from trimtab.run.cost import ModelCost, cost_of
from trimtab.run.execute import EVALUATION_BATCH, training_batches
from trimtab.run.spec import TrainingProtocol
from trimtab.run.texts import text_blocks
from trimtab.study.arms import Arm
from trimtab.study.driver import check_arms
from trimtab.study.hardware import GPUS, UTILISATION, Hardware, estimate
from trimtab.study.specification import StudySpec
from trimtab.study.tokens import Tokens
from trimtab.study.trial import SIXTEENTH

TIMED_STEPS = 5
JOB_SECONDS = 1200  # a job of Slurm with several short runs
ROW_BYTES = 130
FOLDER_BYTES = 8192
TOKEN_BYTES = 8  # per token and reading


def plan(spec: StudySpec, workers: int, gpu: Hardware | None = None) -> str:
    """The estimate of runs, hours and disk space, as lines of text.

    Args:
        spec: the study.
        workers: number of runs at a time on this machine.
        gpu: estimate the time and the memory on this GPU, which need not be here, instead of timing steps here.

    Raises:
        ConfigError: if an arm cannot be built, or the study trains on CUDA, no GPU is here, and none is named.
        CorpusError: if the data cannot be used.
    """
    if gpu is None and spec.protocol.training.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--plan: no GPU is here to time a step; name one with --hardware {'|'.join(GPUS)}")
    tokens = Tokens()
    check_arms(spec, tokens, here=gpu is None)
    rates = [tick.learning_rate for tick in spec.ticks()]
    costs = {name: cost_of(arm.run(0, 0)) for name, arm in spec.arms.items()}
    first = spec.first_runs()
    most = spec.most_runs()
    disk = most * sum(_bytes(arm.protocol) for arm in spec.arms.values()) / len(spec.arms)
    return "\n".join(
        [
            f"study '{printable(spec.name)}' ({spec.kind}): {len(spec.arms)} arms, {len(rates)} learning rates from "
            f"{rates[0]:.4g} to {rates[-1]:.4g}, {spec.protocol.training.steps} steps a run",
            f"runs:  {first} in the first phase, at most {most} in all",
            *(_timed_here(spec, tokens, workers) if gpu is None else _on(gpu, spec, costs)),
            f"disk:  at most {disk / 1e6:.0f} MB",
            _compiled(spec),
            *_costs(costs),
        ]
    )


def _timed_here(spec: StudySpec, tokens: Tokens, workers: int) -> list[str]:
    timed: dict[TrainingProtocol, float] = {}
    for arm in spec.arms.values():  # arms with the same protocol take about the same time
        if arm.protocol not in timed:
            timed[arm.protocol] = seconds_per_run(arm, tokens)
    seconds = sum(timed[arm.protocol] for arm in spec.arms.values()) / len(spec.arms)
    return [
        f"hours: {spec.first_runs() * seconds / workers / 3600:.2f} for the first phase, at most "
        f"{spec.most_runs() * seconds / workers / 3600:.2f} in all ({workers} workers, {seconds:.1f} s a run on "
        f"average, timed on {len(timed)} of the arms{_without_probes(spec)})"
    ]


def _on(gpu: Hardware, spec: StudySpec, costs: Mapping[str, ModelCost]) -> list[str]:
    needs = [estimate(arm.protocol, costs[name], gpu) for name, arm in spec.arms.items()]
    at_once = min(need.at_once for need in needs)
    seconds = sum(need.share_seconds for need in needs) / len(needs)
    alone = max(need.alone_seconds for need in needs)
    memory = max(need.memory_gb for need in needs)
    minutes = max(10, math.ceil(2 * alone / 60))  # twice the time of a run, since it is an estimate
    chunk = max(1, min(50, int(JOB_SECONDS / alone)))
    return [
        f"hours: {spec.first_runs() * seconds / 3600:.2f} for the first phase, at most "
        f"{spec.most_runs() * seconds / 3600:.2f} in all on one {gpu.name} with {at_once} runs at a time "
        f"({alone:.0f} s for the longest run alone). Not measured: assumes {UTILISATION:.0%} of the peak, and "
        f"{1e6 * LAUNCH_SECONDS:.0f} us for each kernel{_without_probes(spec)}",
        f"memory: {memory:.1f} GB a run of {gpu.memory_gb:g} GB",
        f"one GPU: trimtab study FILE --out DIR --option per_gpu={at_once}",
        f"Slurm:   trimtab study FILE --out DIR --executor slurm --option runs_per_job={chunk} "
        f"--option time_minutes={max(minutes, math.ceil(2 * chunk * alone / 60))} --option partition=...",
        f"Ray:     trimtab study FILE --out DIR --executor ray --option address=auto --option gpus={1 / at_once:.3g}",
    ]


def _without_probes(spec: StudySpec) -> str:
    watched = any(arm.protocol.probes.probes() is not None for arm in spec.arms.values())
    return "; the time of probes is not included" if watched else ""


def _bytes(protocol: TrainingProtocol) -> int:
    """Approximate size of one run folder, in bytes."""
    evaluation, probes = protocol.evaluation, protocol.probes
    held = protocol.training.steps * ROW_BYTES + evaluation.num_sequences * protocol.model.context + FOLDER_BYTES
    preset = probes.probes()
    if preset is None or not probes.tokens:
        return held
    readings = protocol.training.steps // (probes.every or preset.every) + 2
    return held + readings * protocol.data.vocab_size * TOKEN_BYTES


def _compiled(spec: StudySpec) -> str:
    """Which arms are compiled, and what that saves and costs in the longest run."""
    estimates = {name: arm.protocol.compiling() for name, arm in spec.arms.items()}
    longest = max(estimates.values(), key=lambda each: each.run)
    chosen = sum(arm.protocol.training.compile is True for arm in spec.arms.values())
    return (
        f"compile: {chosen} of {len(spec.arms)} arms; it saves about {longest.saved:.2g} s of a run of about "
        f"{longest.run:.2g} s, and its graphs take about {longest.build:.0f} s, so it "
        f'{"pays" if longest.pays else "does not pay"} (training.compile; "auto" decides by this estimate)'
    )


def _costs(costs: Mapping[str, ModelCost]) -> list[str]:
    lines = ["arms:  parameters, parameters that the method adds, and FLOPs per token of forward and backward"]
    for name, cost in costs.items():
        lines.append(f"  {printable(name)}: {cost.parameters:,}, {cost.of_method:,}, {cost.flops_per_token:.4g}")
    return lines


def seconds_per_run(arm: Arm, tokens: Tokens) -> float:
    """Estimated seconds of one run of an arm, from a few steps and one evaluation on this machine."""
    run = arm.run(-8 * SIXTEENTH, 0)
    protocol, training = run.protocol, run.protocol.training
    threads = torch.get_num_threads()
    torch.set_num_threads(training.threads)
    device = torch.device(training.device)
    data = tokens.of(protocol.data)
    model = build(run, device)
    held_out = held_out_batch(
        data.held_out, num_sequences=protocol.evaluation.num_sequences, context=protocol.model.context
    ).to(device)
    batches = islice(training_batches(protocol, data, 0, device), TIMED_STEPS)
    times = [time.perf_counter()]
    for record in train(model, batches, build_optimizer(model, run), lambda step: 1e-6):
        float(record.loss)
        times.append(time.perf_counter())
    float(held_out_loss(model, held_out, EVALUATION_BATCH))
    evaluation = time.perf_counter() - times[-1]
    torch.set_num_threads(threads)
    steps = [after - before for before, after in pairwise(times)][1:]  # the first step includes warm-up costs
    whole = training.steps * min(steps) + len(protocol.evaluation.steps_of(training.steps)) * evaluation
    blocks = text_blocks(data, protocol.evaluation, protocol.model.context)
    windows = sum(part.shape[0] * part.shape[1] for part in blocks.values())
    return whole + evaluation * windows / len(held_out)
