"""Whether ``torch.compile`` pays for a run, estimated from its settings alone.

The answer must not depend on the machine that asks, because it is part of the run's identity. Building the graphs of a
small GPT took 12 s on a CPU, after which its steps were 1.2 to 1.6 times as fast; the estimate takes the lower value.
Graphs are kept on disk by torch and shared by all processes of a machine, so a study pays less than it estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trimtab.models.gpt import GPTConfig

LAUNCH_SECONDS = 8e-6  # of a kernel on a GPU
LAUNCHES_PER_LAYER = 75  # kernels of forward and backward of one block
LAUNCHES_OUTSIDE = 100  # embedding, head, loss, clipping and a fused optimizer
FLOPS_PER_SECOND = {"cpu": 3e10, "cuda": 1e13}  # sustained in fp32, of a thread or of a GPU
SPEEDUP = 1.2
BUILD_SECONDS = {"cpu": 12.0, "cuda": 40.0}
MATRICES_PER_BLOCK = 4  # of width x width: Q, K, V and Proj
PASSES = 3  # forward, and twice its work backward


@dataclass(frozen=True, slots=True)
class Compiling:
    """What compilation costs and saves in one run, in seconds.

    Attributes:
        run: estimated time of the steps without it.
        build: time to build the graphs.
    """

    run: float
    build: float

    @property
    def saved(self) -> float:
        """Time that the compiled steps save."""
        return self.run * (1 - 1 / SPEEDUP)

    @property
    def pays(self) -> bool:
        """Whether a single run saves more than the graphs cost."""
        return self.saved > self.build


def compiling(
    model: GPTConfig, steps: int, batch_size: int, accumulate: int, threads: int, device: Literal["cpu", "cuda"]
) -> Compiling:
    """Estimate what compilation costs and saves; a model from user code is taken for a GPT of the shape ``model``."""
    block = (MATRICES_PER_BLOCK + 2 * model.mlp_ratio) * model.width**2 + 2 * model.context * model.width
    products = model.num_layers * block + model.vocab_size * model.width
    flops = 2 * PASSES * products * batch_size * model.context
    speed = FLOPS_PER_SECOND[device] * (threads if device == "cpu" else 1)
    launches = (LAUNCHES_PER_LAYER * model.num_layers + LAUNCHES_OUTSIDE) * accumulate if device == "cuda" else 0
    step = max(flops / speed, launches * LAUNCH_SECONDS)
    return Compiling(steps * step, BUILD_SECONDS[device])
