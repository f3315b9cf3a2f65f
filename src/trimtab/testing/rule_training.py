"""A short training of a small GPT in float64 with rules attached, by one process or by two.

Two processes share each batch and either replicate the model (DistributedDataParallel) or shard it (FSDP2). The rule is
given by the file and the name of its class, so that a class of a test is found as well.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trimtab.intervention import GradientRule, LossTerm, RunningLossTerm, UpdateRule
from trimtab.loss import losses_of
from trimtab.models.gpt import GPT, GPTConfig
from trimtab.rules import AttachedRules, attach

CONFIG = GPTConfig(
    vocab_size=37, context=12, num_layers=2, num_heads=2, width=18, tied=False, init_std=0.2
)  # fmt: skip
STEPS, BATCH, WORLD = 12, 8, 2
SPIKES = {6: 30.0, 9: 300.0}  # factors of the loss, by step from 0
MODES = ("ddp", "fsdp")
TIMEOUT_S = 300
DONE = "a task is done\n"

ActingRule = GradientRule | UpdateRule
TestedRule = ActingRule | LossTerm


def make_model() -> GPT:
    """The same model on every call, in float64."""
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return GPT(CONFIG).double()


def batch_of(step: int) -> Tensor:
    """Tokens of a step, (8, 13)."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randint(0, CONFIG.vocab_size, (BATCH, CONFIG.context + 1), generator=generator)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with weight decay on everything."""
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)


def step_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    pieces: Sequence[Tensor],
    terms: Sequence[RunningLossTerm] = (),
) -> None:
    """One optimizer step on the mean of micro-batches, with loss terms."""
    optimizer.zero_grad()
    for tokens in pieces:
        loss, penalty = losses_of(model, tokens, terms, step + 1)
        objective = loss if penalty is None else loss + penalty
        (objective * SPIKES.get(step, 1.0) / len(pieces)).backward()
    optimizer.step()


def terms_of(rule: TestedRule | None) -> list[RunningLossTerm]:
    """The term of a loss term; none for any other rule."""
    return [rule.start()] if isinstance(rule, LossTerm) else []


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights, whole ones where they are sharded."""
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        for name, p in model.named_parameters()
    }


def train(rule: TestedRule | None, *, accumulate: int = 1, steps: int = STEPS) -> dict[str, Tensor]:
    """Train in this process, and return the weights."""
    model = make_model()
    optimizer = make_optimizer(model)
    attached = attach(optimizer, model, [rule]) if isinstance(rule, ActingRule) else None
    terms = terms_of(rule)
    for step in range(steps):
        step_of(model, optimizer, step, batch_of(step).chunk(accumulate), terms)
    if attached is not None:
        attached.remove()
    return weights_of(model)


def start(rule: ActingRule) -> tuple[GPT, torch.optim.Optimizer, AttachedRules]:
    """A fresh model, its optimizer, and the rule attached to both."""
    model = make_model()
    optimizer = make_optimizer(model)
    return model, optimizer, attach(optimizer, model, [rule])


def train_on_ranks(rule: TestedRule) -> dict[str, dict[str, Tensor]]:
    """Weights after training by two processes, by mode. The processes stay for the next call.

    Raises:
        RuntimeError: if a process fails; the message is the end of what it printed.
    """
    kind = type(rule)
    settings = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule) if f.init}  # pyright: ignore
    with tempfile.TemporaryDirectory() as folder:
        _ranks().train([folder, kind.__module__, inspect.getfile(kind), kind.__qualname__, json.dumps(settings)])
        return {mode: torch.load(Path(folder) / f"{mode}.pt") for mode in MODES}


class _Ranks:
    """Two processes that have imported torch; they end when this process does, since that closes their input."""

    def __init__(self) -> None:
        # Loopback only: a machine's name need not resolve.
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", __name__, str(rank)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=env,
            )
            for rank in range(WORLD)
        ]

    def train(self, task: Sequence[str]) -> None:
        """Have both processes do a task, and wait for them."""
        late = threading.Timer(TIMEOUT_S, self.kill)
        late.start()
        try:
            for process in self.processes:
                assert process.stdin is not None
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
            said = [self._until_done(process) for process in self.processes]
        except OSError as error:  # a process ended since the task before
            said = [str(error)]
        finally:
            late.cancel()
        if any(said):
            self.kill()
            _ranks.cache_clear()
            raise RuntimeError(next(filter(None, said))[-2000:])

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def _until_done(self, process: subprocess.Popen[str]) -> str:
        """Empty once the process has done its task; else what it printed until it ended."""
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            if line == DONE:
                return ""
            lines.append(line)
        return "".join(lines) or f"a process ended with code {process.wait()}"


@functools.cache
def _ranks() -> _Ranks:
    return _Ranks()


def _rule_of(module: str, file: str, name: str, settings: str) -> TestedRule:
    found: Any = sys.modules.get(module)
    if module.startswith("trimtab."):
        found = importlib.import_module(module)
    if found is None:
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        sys.modules[module] = found
        spec.loader.exec_module(found)
    for part in name.split("."):
        found = getattr(found, part)
    return found(**json.loads(settings))


def _train_rank(rank: int, folder: str, module: str, file: str, name: str, settings: str) -> None:
    store = cast(Any, dist).FileStore(str(Path(folder) / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    for mode in MODES:
        model = make_model()
        if mode == "ddp":
            called: nn.Module = nn.parallel.DistributedDataParallel(model)
        else:
            from torch.distributed.fsdp import fully_shard  # a slow import

            for block in model.blocks:
                fully_shard(block)
            called = cast(nn.Module, fully_shard(model))
        optimizer = make_optimizer(called)
        rule = _rule_of(module, file, name, settings)
        if isinstance(rule, ActingRule):
            attach(optimizer, called, [rule])
        terms = terms_of(rule)
        for step in range(STEPS):
            step_of(called, optimizer, step, [batch_of(step).chunk(WORLD)[rank]], terms)
        weights = weights_of(model)
        if rank == 0:
            torch.save(weights, Path(folder) / f"{mode}.pt")
        dist.barrier()
    dist.destroy_process_group()


def _serve(rank: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for line in sys.stdin:
        _train_rank(rank, *json.loads(line))
        sys.stdout.write(DONE)
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
