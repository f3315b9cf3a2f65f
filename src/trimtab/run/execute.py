"""Carry out one run: build the model, install the method, train, evaluate and record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from trimtab.config import dump_toml
from trimtab.data import TokenData
from trimtab.data.batches import held_out_batch, training_batch
from trimtab.hosts import host_or_model
from trimtab.loop import Evaluation, train
from trimtab.loss import held_out_loss
from trimtab.run.build import build, build_optimizer, start_rules, weight_matrices, weight_norm
from trimtab.run.environment import environment
from trimtab.run.facts import Facts
from trimtab.run.folder import PREDICTIONS, TOKENS, IntegrityError, Outcome, RunFolder, load_outcome
from trimtab.run.identity import run_id
from trimtab.run.recordings import TokenRecorder, token_recorder, top_predictions
from trimtab.run.spec import ProbesConfig, RunSpec, TrainingProtocol
from trimtab.run.step_times import StepTimes
from trimtab.run.texts import block_losses, fingerprint_of, text_blocks
from trimtab.sink import Row
from trimtab.watching import Watch, watch

EVALUATION_BATCH = 64

Progress = Callable[[int, float], None]


OTHER_CODE = (
    "the code or the data changed since the study was started, or they differ on the machine of the worker; start the "
    "study again, with the same trimtab and the same data everywhere"
)


class OtherCodeError(IntegrityError):
    """The code or the data of this process give the run another id than that of the study."""


def execute(
    spec: RunSpec,
    runs: Path,
    *,
    progress: Progress = lambda step, loss: None,
    keep_weights: bool = False,
    expected: str = "",
    owned: Callable[[], bool] = lambda: True,
    note: str = "",
) -> Outcome:
    """Train one run into ``runs/<run id>`` and return its outcome.

    An interrupted run starts again from step 0. A finished run is not changed.

    Args:
        spec: the run.
        runs: the folder that holds run folders.
        progress: called with the step and the training loss after every step.
        keep_weights: also write ``checkpoints/final.safetensors``.
        expected: the run id that the caller expects; "" if the caller expects no particular id.
        owned: whether this process may still write the run; asked at the start, at most once a second, and before the
            outcome is written.
        note: a remark on how the run is carried out, for environment.json.

    Raises:
        CorpusError: if the data cannot be used.
        OtherCodeError: if the run id differs from ``expected``.
        IntegrityError: if a finished run is damaged, or has no weights although ``keep_weights`` is true.
        NotOwnedError: if another process may write the run now.
        SiteUnavailableError: if the model lacks what the method needs.
    """
    with settings_of_torch(spec):
        data = spec.protocol.data.load()
        name = run_id(spec, fingerprint_of(data, spec.protocol.evaluation))
        if expected not in ("", name):
            raise OtherCodeError(OTHER_CODE)
        finished = load_outcome(runs / name)
        folder = RunFolder(runs / name, owned)
        if finished is not None and (folder.has_weights or not keep_weights):
            return finished
        if finished is not None:
            raise IntegrityError(
                f"{folder.path}: this run is finished and has no weights; use another --out to train it again "
                "with weights"
            )
        made_on = environment(torch.device(spec.protocol.training.device))
        folder.begin(dump_toml(spec.table()), {**made_on, "population": note} if note else made_on)
        try:
            return _train(spec, data, folder, name, progress, keep_weights=keep_weights)
        finally:
            folder.close()


def _train(
    spec: RunSpec, data: TokenData, folder: RunFolder, name: str, progress: Progress, *, keep_weights: bool
) -> Outcome:
    protocol = spec.protocol
    training = protocol.training
    device = torch.device(training.device)
    started = time.monotonic()
    model = build(spec, device)
    optimizer = build_optimizer(model, spec)
    matrices = weight_matrices(model)
    held_out = held_out_batch(
        data.held_out, num_sequences=protocol.evaluation.num_sequences, context=protocol.model.context
    ).to(device)
    recorder = token_recorder(model, protocol.probes, data)
    watching = attach_probes(model, optimizer, protocol.probes, folder, recorder)
    if training.compile and watching is not None:
        torch.compiler.reset()  # otherwise torch would reuse the graph of an unwatched model of the same shape
    called = cast(nn.Module, torch.compile(model)) if training.compile else model
    facts = Facts(protocol, data)
    times = StepTimes()
    for record in train(
        called,
        training_batches(protocol, data, spec.seeds.data, device),
        optimizer,
        lambda step: protocol.schedule.factor(step, training.steps),
        start_rules(model, optimizer, spec),
        evaluation=Evaluation(
            loss=lambda: held_out_loss(model, held_out, EVALUATION_BATCH),
            after=protocol.evaluation.steps_of(training.steps),
        ),
        after_backward=watching.see_gradients if watching is not None else lambda: None,
        precision=training.precision,
    ):
        loss = float(record.loss)
        row: dict[str, int | float | None] = {
            "step": record.step,
            "learning_rate": spec.learning_rate * record.multiplier,
            "loss": loss,
            "grad_norm": float(record.grad_norm),
        }
        if record.penalty is not None:
            row["penalty"] = float(record.penalty)
        if record.held_out_loss is not None:
            row["held_out_loss"] = float(record.held_out_loss)
            row["weight_norm"] = float(weight_norm(model, matrices))
        folder.append(row)
        folder.beat(record.step, loss)
        times.tick(watching, evaluated=record.held_out_loss is not None)
        progress(record.step, loss)
        if facts.see(row):
            break
    if recorder is not None:
        folder.write_arrays(TOKENS, recorder.arrays())
    if keep_weights:
        folder.write_weights(model.state_dict(), name)
    if watching is not None:
        watching.remove()
        folder.write_times(times.table(watching))
    return finish_run(model, data, folder, facts, time.monotonic() - started, held_out)


def finish_run(
    model: nn.Module, data: TokenData, folder: RunFolder, facts: Facts, seconds: float, held_out: Tensor
) -> Outcome:
    """Evaluate a trained model a last time, and write the outcome of its run."""
    evaluation = facts.evaluation
    if evaluation.final_blocks and facts.stopped is None:
        blocks = text_blocks(data, evaluation, held_out.shape[1] - 1)
        folder.write_texts(block_losses(model, blocks, EVALUATION_BATCH, held_out.device))
    folder.write_arrays(PREDICTIONS, {"predictions": top_predictions(model, held_out, EVALUATION_BATCH)})
    outcome = facts.outcome(folder.path.name, data, seconds)
    folder.finish(outcome)
    return outcome


@contextlib.contextmanager
def settings_of_torch(spec: RunSpec) -> Generator[None]:
    """Set threads and determinism of torch for a run; restore them and the state of every generator afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    on_cuda = spec.protocol.training.device == "cuda"
    torch.set_num_threads(spec.protocol.training.threads)
    torch.use_deterministic_algorithms(on_cuda, warn_only=True)
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if on_cuda else []):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def attach_probes(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: ProbesConfig,
    folder: RunFolder,
    recorder: TokenRecorder | None = None,
) -> Watch | None:
    """Attach the probes of the specification; they write into the run folder.

    If no host knows the model, its modules are read by name.
    """
    preset = config.probes()
    if preset is None:
        return None
    sink = _FolderSink(folder, recorder)
    return watch(
        host_or_model(model), preset, optimizer=optimizer, every=config.every or None, sinks=(sink,), group=None
    )


class _FolderSink:
    """Writes the readings of the probes into the run folder, and records the token table at each reading."""

    def __init__(self, folder: RunFolder, recorder: TokenRecorder | None) -> None:
        self.folder = folder
        self.recorder = recorder

    def open(self, run: str) -> None:
        pass

    def log(self, step: int, row: Row) -> None:
        self.folder.append_reading(row)
        if self.recorder is not None:
            self.recorder.read(step)

    def close(self, status: Literal["finished", "failed"]) -> None:
        pass


def training_batches(
    protocol: TrainingProtocol, data: TokenData, seed: int, device: torch.device
) -> Iterator[Sequence[Tensor]]:
    """One tuple of micro-batches per step."""
    training = protocol.training
    for step in range(training.steps):
        batch = training_batch(
            data.train,
            seed=seed,
            step=step,
            batch_size=training.batch_size,
            context=protocol.model.context,
            order=protocol.batches,
        )
        yield batch.to(device).chunk(training.accumulate)
