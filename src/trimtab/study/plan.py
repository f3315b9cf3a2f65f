"""Estimate the runs, hours and disk space of a study before it starts, from a few timed steps."""

from __future__ import annotations

import time
from itertools import islice, pairwise

import torch

from trimtab.config import printable
from trimtab.data.batches import held_out_batch
from trimtab.loop import train
from trimtab.loss import held_out_loss
from trimtab.run.build import build, build_optimizer
from trimtab.run.cost import cost_of
from trimtab.run.execute import EVALUATION_BATCH, training_batches
from trimtab.run.spec import TrainingProtocol
from trimtab.run.texts import text_blocks
from trimtab.study.arms import Arm
from trimtab.study.driver import check_arms
from trimtab.study.specification import StudySpec
from trimtab.study.tokens import Tokens
from trimtab.study.trial import SIXTEENTH

TIMED_STEPS = 5
ROW_BYTES = 130
FOLDER_BYTES = 8192
TOKEN_BYTES = 8  # per token and reading


def plan(spec: StudySpec, workers: int) -> str:
    """The estimate of runs, hours and disk space, as lines of text.

    Raises:
        ConfigError: if an arm cannot be built.
        CorpusError: if the data cannot be used.
    """
    tokens = Tokens()
    check_arms(spec, tokens)
    timed: dict[TrainingProtocol, float] = {}
    for arm in spec.arms.values():  # arms with the same protocol take about the same time
        if arm.protocol not in timed:
            timed[arm.protocol] = seconds_per_run(arm, tokens)
    seconds = sum(timed[arm.protocol] for arm in spec.arms.values()) / len(spec.arms)
    rates = [tick.learning_rate for tick in spec.ticks()]
    name = printable(spec.name)
    first = spec.first_runs()
    most = spec.most_runs()
    disk = most * sum(_bytes(arm.protocol) for arm in spec.arms.values()) / len(spec.arms)
    return "\n".join(
        [
            f"study '{name}' ({spec.kind}): {len(spec.arms)} arms, {len(rates)} learning rates from "
            f"{rates[0]:.4g} to {rates[-1]:.4g}, {spec.protocol.training.steps} steps a run",
            f"runs:  {first} in the first phase, at most {most} in all",
            f"hours: {first * seconds / workers / 3600:.2f} for the first phase, at most "
            f"{most * seconds / workers / 3600:.2f} in all ({workers} workers, {seconds:.1f} s a run on average, timed "
            f"on {len(timed)} of the arms{_without_probes(spec)})",
            f"disk:  at most {disk / 1e6:.0f} MB",
            *_costs(spec),
        ]
    )


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


def _costs(spec: StudySpec) -> list[str]:
    lines = ["arms:  parameters, parameters that the method adds, and FLOPs per token of forward and backward"]
    for name, arm in spec.arms.items():
        cost = cost_of(arm.run(0, 0))
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
