"""Carry out one run: build, install, train, evaluate, record. The place where catalogues, data and loop meet."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trimtab.config import dump_toml
from trimtab.data import TokenData
from trimtab.data.batches import held_out_batch, training_batch
from trimtab.hosts import UnknownFamilyError, host_for, host_or_model
from trimtab.intervention import GradientRule, ModelIntervention
from trimtab.loop import held_out_loss, train
from trimtab.method import family_matrices, install, method_parameters
from trimtab.models.gpt import GPT
from trimtab.optim import adamw
from trimtab.probes import PRESETS
from trimtab.run.folder import IntegrityError, Outcome, RunFolder
from trimtab.run.identity import run_id
from trimtab.run.spec import ProbesConfig, Protocol, RunSpec
from trimtab.run.texts import block_losses, fingerprint_of, text_blocks
from trimtab.sink import Row
from trimtab.watching import Watch, watch

EVALUATION_BATCH = 64
SPIKE_WINDOW = 201

Progress = Callable[[int, float], None]


def execute(
    spec: RunSpec,
    runs: Path,
    *,
    progress: Progress = lambda step, loss: None,
    keep_weights: bool = False,
    expected: str = "",
) -> Outcome:
    """Train one run into ``runs/<run id>`` and return its outcome; an interrupted attempt starts over.

    Args:
        spec: the run.
        runs: the folder that holds run folders.
        progress: called with step and training loss after every step.
        expected: the run id that the caller knows the run by; "" if none.
        keep_weights: also write ``checkpoints/final.safetensors``.

    Raises:
        CorpusError: if the data cannot be used.
        IntegrityError: if the run has another id than expected.
        SiteUnavailableError: if the model lacks what the method needs.
    """
    protocol, training = spec.protocol, spec.protocol.training
    torch.set_num_threads(training.threads)
    device = torch.device(training.device)
    torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)
    data = protocol.data.load()
    name = run_id(spec, fingerprint_of(data, protocol.evaluation))
    if expected not in ("", name):
        raise IntegrityError("the code or the data changed since the study was started; start it again")
    folder = RunFolder(runs / name)
    folder.begin(dump_toml(spec.table()), environment())
    started = time.monotonic()
    try:
        model = build(spec, device)
        optimizer = build_optimizer(model, spec)
        matrices = weight_matrices(model)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rules = [rule.start(parameters) for rule in spec.interventions if isinstance(rule, GradientRule)]
        held_out = held_out_batch(
            data.held_out, num_sequences=protocol.evaluation.num_sequences, context=protocol.model.context
        ).to(device)
        watching = attach_probes(model, optimizer, protocol.probes, folder)
        if training.compile and watching is not None:
            torch.compiler.reset()  # a graph of an unwatched model of the same shape would be taken for this one's
        called = cast(nn.Module, torch.compile(model)) if training.compile else model
        facts = _Facts(protocol, data)
        for record in train(
            called,
            training_batches(protocol, data, spec.seeds.data, device),
            optimizer,
            learning_rate=lambda step: spec.learning_rate * protocol.schedule.factor(step, training.steps),
            gradient_rules=rules,
            after_backward=watching.see_gradients if watching is not None else lambda: None,
            evaluate=lambda: held_out_loss(model, held_out, EVALUATION_BATCH),
            evaluate_after=protocol.evaluation.steps_of(training.steps),
            precision=training.precision,
        ):
            loss = float(record.loss)
            row: dict[str, int | float | None] = {
                "step": record.step,
                "learning_rate": record.learning_rate,
                "loss": loss,
                "grad_norm": float(record.grad_norm),
            }
            if record.held_out_loss is not None:
                row["held_out_loss"] = float(record.held_out_loss)
                row["weight_norm"] = float(weight_norm(model, matrices))
            folder.append(row)
            progress(record.step, loss)
            if facts.see(row):
                break
        if protocol.evaluation.final_blocks and facts.stopped is None:
            blocks = text_blocks(data, protocol.evaluation, protocol.model.context)
            folder.write_texts(block_losses(model, blocks, EVALUATION_BATCH, device))
        if keep_weights:
            checkpoints = folder.path / "checkpoints"
            checkpoints.mkdir()
            weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
            save_file(weights, checkpoints / "final.safetensors", metadata={"run_id": name})
        if watching is not None:
            watching.remove()
        outcome = facts.outcome(name, data, time.monotonic() - started)
        folder.finish(outcome)
        return outcome
    finally:
        folder.close()


def build(spec: RunSpec, device: torch.device) -> nn.Module:
    """The model with its method installed; initial weights depend on ``seeds.init`` alone."""
    torch.manual_seed(spec.seeds.init)
    builder = spec.build_model or GPT
    model = builder(spec.protocol.model).to(device)
    edits = [i for i in spec.interventions if isinstance(i, ModelIntervention)]
    if edits:
        install(edits, host_for(model))
    torch.manual_seed(spec.seeds.other)
    return model


def build_optimizer(model: nn.Module, spec: RunSpec) -> torch.optim.Optimizer:
    """The user's optimizer, or AdamW with decay on family matrices only."""
    if spec.build_optimizer is not None:
        return spec.build_optimizer(model, spec.learning_rate)
    return adamw(model, spec.protocol.optimizer, spec.learning_rate, exempt=method_parameters(model))


def attach_probes(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: ProbesConfig, folder: RunFolder
) -> Watch | None:
    """The probes of the specification, writing into the run folder; a model that no host knows is read by names."""
    if config.preset == "none":
        return None
    subject = host_or_model(model)
    every = config.every or None
    return watch(
        subject, PRESETS[config.preset], optimizer=optimizer, every=every, sinks=(_FolderSink(folder),), group=None
    )


class _FolderSink:
    """Readings go beside the step rows."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def open(self, run: str) -> None:
        pass

    def log(self, step: int, row: Row) -> None:
        self.folder.append_reading(row)

    def close(self, status: Literal["finished", "failed"]) -> None:
        pass


def training_batches(
    protocol: Protocol, data: TokenData, seed: int, device: torch.device
) -> Iterator[Sequence[Tensor]]:
    """One tuple of micro-batches per step."""
    training = protocol.training
    for step in range(training.steps):
        batch = training_batch(
            data.train, seed=seed, step=step, batch_size=training.batch_size, context=protocol.model.context
        )
        yield batch.to(device).chunk(training.accumulate)


def weight_matrices(model: nn.Module) -> Callable[[], Sequence[Tensor]]:
    """A reading of the effective weight matrices; of every matrix where no host knows the model."""
    try:
        host = host_for(model)
    except UnknownFamilyError:
        return lambda: [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    return lambda: family_matrices(host)


def weight_norm(model: nn.Module, matrices: Callable[[], Sequence[Tensor]]) -> Tensor:
    """L2 norm over all entries of all matrices, in fp32; eval mode, so that reading a weight alters no state."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        norm = torch.nn.utils.get_total_norm([matrix.float() for matrix in matrices()])
    model.train(was_training)
    return norm


def environment() -> dict[str, object]:
    """What may differ between two equal runs: versions and machine."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


class _Facts:
    """Gathers from the rows what the outcome states, and says when a run is to be given up."""

    def __init__(self, protocol: Protocol, data: TokenData) -> None:
        steps = protocol.training.steps
        self.evaluation, self.warmup_steps, self.half = protocol.evaluation, protocol.schedule.warmup_steps, steps / 2
        self.exploded_above = data.log_vocab + protocol.evaluation.explosion_margin
        self.final_steps = protocol.evaluation.final_steps_of(steps)
        self.held_out: list[tuple[int, float]] = []
        self.recent = deque[float](maxlen=SPIKE_WINDOW)
        self.steps, self.exploded_in_a_row = 0, 0
        self.initial_loss, self.initial_norm = math.nan, math.nan
        self.norm_ratio, self.spike = 1.0, 0.0
        self.stopped: Literal["non_finite", "exploded"] | None = None

    def see(self, row: dict[str, int | float | None]) -> bool:
        """Take one row in; True if the run must stop here."""
        step, loss = int(row["step"] or 0), float(row["loss"] or 0.0)
        self.steps = step
        numbers = [] if step == 0 else [loss]
        if step > 0 and math.isfinite(loss):
            self.recent.append(loss)
            if step > self.warmup_steps:
                self.spike = max(self.spike, loss - statistics.median(self.recent))
        held_out, norm = row.get("held_out_loss"), row.get("weight_norm")
        if held_out is not None and norm is not None:
            numbers += [held_out, norm]
            if step == 0:
                self.initial_loss, self.initial_norm = held_out, norm
            self.norm_ratio = max(self.norm_ratio, norm / self.initial_norm)
            self.held_out.append((step, held_out))
            exploded = step > self.half and held_out > self.exploded_above
            self.exploded_in_a_row = self.exploded_in_a_row + 1 if exploded else 0
        if not all(math.isfinite(number) for number in numbers):
            self.stopped = "non_finite"
        elif self.exploded_in_a_row >= self.evaluation.explosion_patience:
            self.stopped = "exploded"
        return self.stopped is not None

    def outcome(self, name: str, data: TokenData, seconds: float) -> Outcome:
        """The facts so far."""
        final = [loss for step, loss in self.held_out if step in self.final_steps]
        if len(final) < len(self.final_steps):  # given up before its end
            final = [loss for _, loss in self.held_out][-len(self.final_steps) :]
        broken = self.stopped == "non_finite"
        return Outcome(
            run_id=name,
            stopped=self.stopped,
            steps=self.steps,
            initial_loss=self.initial_loss,
            final_loss=math.nan if broken else statistics.median(final),
            norm_ratio=self.norm_ratio,
            spike=self.spike,
            log_vocab=data.log_vocab,
            unigram_entropy=data.unigram_entropy,
            bytes_per_token=data.bytes_per_token,
            held_out=tuple(self.held_out),
            seconds=seconds,
        )
