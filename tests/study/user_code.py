"""User code for tests, with and without errors. Workers can import this module, but not the test modules."""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from trimtab import GPTConfig
from trimtab.host import Site, Tap
from trimtab.intervention import ModelEdit, Source
from trimtab.method import Method
from trimtab.study.executors.contract import Job, Progress, train_job

MARKS = "TRIMTAB_TEST_MARKS"
WIDTH = 16


class Bigram(nn.Module):
    """A model that predicts the next token only from the current token."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, WIDTH)
        self.head = nn.Linear(WIDTH, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


def build_bigram(config: GPTConfig) -> nn.Module:
    return Bigram(config.vocab_size)


def build_with_library(config: GPTConfig) -> nn.Module:
    import tomli_w  # inside the function, as a slow library often is

    assert tomli_w.dumps({"vocab_size": config.vocab_size})
    return Bigram(config.vocab_size)


def build_broken(config: GPTConfig) -> nn.Module:
    raise FileNotFoundError("vocabulary.json")


def sgd(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Halved(ModelEdit):
    """Halves the outputs of attention and of the MLP."""

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site.ATTN_OUT, Site.MLP_OUT)

    def edit(self, tap: Tap) -> nn.Module:
        return Half()


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def own_method() -> Method:
    source = Source(title="none", arxiv="0000.00000", place="here", equation="x / 2", deviations=())
    return Method("halved", (Halved(),), source)


def mark(name: str) -> int:
    """The number of calls with this name in all processes, including this call."""
    with (Path(os.environ[MARKS]) / name).open("a+b") as file:
        file.write(b"x")
        return file.tell()


def is_qk_norm_at(job: Job, least_learning_rate: float) -> bool:
    return len(job.spec.method) > 0 and job.spec.learning_rate >= least_learning_rate


def count(job: Job, progress: Progress) -> None:
    mark(job.name)
    train_job(job, progress)


def raise_for_one_arm(job: Job, progress: Progress) -> None:
    mark(job.name)
    if is_qk_norm_at(job, 1.0):
        raise RuntimeError("no luck\ntoday")
    train_job(job, progress)


def raise_always(job: Job, progress: Progress) -> None:
    raise RuntimeError("no luck at all")


def missing_file_for_one_arm(job: Job, progress: Progress) -> None:
    if is_qk_norm_at(job, 1.0):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "user's own table.npy")
    train_job(job, progress)


def die_once(job: Job, progress: Progress) -> None:
    if is_qk_norm_at(job, 1.0) and mark("died") == 1:

        def die(step: int, loss: float) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

        train_job(job, die)
    train_job(job, progress)


def die_always(job: Job, progress: Progress) -> None:
    if is_qk_norm_at(job, 8.0) and job.spec.seeds.init == 0:
        mark("died")
        os.kill(os.getpid(), signal.SIGKILL)
    train_job(job, progress)


def fill_disk(job: Job, progress: Progress) -> None:
    if mark("jobs") == 5:

        def full(step: int, loss: float) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        train_job(job, full)
    train_job(job, progress)


def stop_once(job: Job, progress: Progress) -> None:
    """The process stops in the middle of a run, as a machine that swaps or a debugger may do; nothing wakes it."""
    if mark("stopped") == 1:

        def stop(step: int, loss: float) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGSTOP)

        train_job(job, stop)
    train_job(job, progress)


def tell_device_and_wait(job: Job, progress: Progress) -> None:
    file = job.runs / job.name
    unfinished = file.with_suffix(".part")
    unfinished.write_text(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
    unfinished.rename(file)
    time.sleep(600)


def tell_environment(job: Job, progress: Progress) -> None:
    """Write the process and the value of ``MARKS`` in its environment."""
    (job.runs / job.name).write_text(f"{os.getpid()} {os.environ.get(MARKS, '')}")
