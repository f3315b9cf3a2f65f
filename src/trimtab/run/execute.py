"""Carry out one run: build, install, train, evaluate, record. The place where catalogues, data and loop meet."""

from __future__ import annotations

import platform
import time
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
from trimtab.host import Part, SiteUnavailableError
from trimtab.hosts import UnknownFamilyError, host_for, host_or_model
from trimtab.intervention import GradientRule, ModelIntervention
from trimtab.loop import held_out_loss, train
from trimtab.method import family_matrices, install, method_parameters
from trimtab.models.gpt import GPT
from trimtab.optim import adamw
from trimtab.run.clock import Clock
from trimtab.run.facts import Facts
from trimtab.run.folder import PREDICTIONS, TOKENS, IntegrityError, Outcome, RunFolder
from trimtab.run.identity import run_id
from trimtab.run.recordings import TokenRecorder, top_predictions
from trimtab.run.spec import ProbesConfig, Protocol, RunSpec
from trimtab.run.texts import block_losses, fingerprint_of, text_blocks
from trimtab.sink import Row
from trimtab.watching import Watch, watch

EVALUATION_BATCH = 64

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
        recorder = token_recorder(model, protocol.probes, data)
        watching = attach_probes(model, optimizer, protocol.probes, folder, recorder)
        if training.compile and watching is not None:
            torch.compiler.reset()  # a graph of an unwatched model of the same shape would be taken for this one's
        called = cast(nn.Module, torch.compile(model)) if training.compile else model
        facts, clock = Facts(protocol, data), Clock()
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
            clock.tick(watching, evaluated=record.held_out_loss is not None)
            progress(record.step, loss)
            if facts.see(row):
                break
        if protocol.evaluation.final_blocks and facts.stopped is None:
            blocks = text_blocks(data, protocol.evaluation, protocol.model.context)
            folder.write_texts(block_losses(model, blocks, EVALUATION_BATCH, device))
        folder.write_arrays(PREDICTIONS, {"predictions": top_predictions(model, held_out, EVALUATION_BATCH)})
        if recorder is not None:
            folder.write_arrays(TOKENS, recorder.arrays())
        if keep_weights:
            checkpoints = folder.path / "checkpoints"
            checkpoints.mkdir()
            weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
            save_file(weights, checkpoints / "final.safetensors", metadata={"run_id": name})
        if watching is not None:
            watching.remove()
            folder.write_times(clock.times(watching))
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
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: ProbesConfig,
    folder: RunFolder,
    recorder: TokenRecorder | None = None,
) -> Watch | None:
    """The probes of the specification, writing into the run folder; a model that no host knows is read by names."""
    preset = config.probes()
    if preset is None:
        return None
    sink = _FolderSink(folder, recorder)
    return watch(
        host_or_model(model), preset, optimizer=optimizer, every=config.every or None, sinks=(sink,), group=None
    )


def token_recorder(model: nn.Module, config: ProbesConfig, data: TokenData) -> TokenRecorder | None:
    """What keeps every token's spread, if the specification asks for it; it begins with the initial table.

    Raises:
        SiteUnavailableError: if the model's family, or the token table in it, is not known.
    """
    if not config.tokens:
        return None
    tables = [view.stored for view in host_for(model).find_parts() if view.part is Part.EMBEDDING]
    table = next((table for table in tables if table is not None), None)
    if table is None:
        raise SiteUnavailableError("probes.tokens: the model has no token embedding of its own; leave it out")
    recorder = TokenRecorder(table, data.train)
    recorder.read(0)
    return recorder


class _FolderSink:
    """Readings go beside the step rows."""

    def __init__(self, folder: RunFolder, recorder: TokenRecorder | None) -> None:
        self.folder, self.recorder = folder, recorder

    def open(self, run: str) -> None:
        pass

    def log(self, step: int, row: Row) -> None:
        self.folder.append_reading(row)
        if self.recorder is not None:
            self.recorder.read(step)

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
