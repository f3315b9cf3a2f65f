"""Time and memory of a run on a named GPU, estimated without that GPU.

The time of a step is a roofline: the larger of the time of the arithmetic, at a share of the peak, and the time to
launch its kernels. The share was measured: 600 steps of a model of 10 million parameters, 4,096 tokens a step, fp32,
took 117 ms a step with 8 runs at a time on one H100, which is 25 % of the peak of its fp32 units. Everything else is an
extrapolation.
"""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.run.compiling import LAUNCH_SECONDS, LAUNCHES_OUTSIDE, LAUNCHES_PER_LAYER
from trimtab.run.cost import ModelCost
from trimtab.run.spec import TrainingProtocol

UTILISATION = 0.25
AT_ONCE = 8  # runs at a time on one GPU, with which the share was measured
LAUNCHES_COMPILED = 0.3  # share of the launches that is left after fusion
CONTEXT_GB = 0.6  # what CUDA itself takes in each process
COMPUTE_BYTES = {"fp32": 4, "bf16": 2}
STATE_BYTES = 16  # of a parameter in fp32: weight, gradient and two moments
ACTIVATIONS_PER_CHANNEL = 34  # numbers that a block keeps for the backward pass, by token and channel of its width
LOGIT_COPIES = 3  # logits, their softmax and their gradient, in fp32


@dataclass(frozen=True, slots=True)
class Hardware:
    """A GPU, with the numbers of its maker.

    Attributes:
        memory_gb: memory, in GB.
        fp32_tflops, bf16_tflops: peak of dense arithmetic, in 10^12 FLOPs per second; fp32 without TF32.
    """

    name: str
    memory_gb: float
    fp32_tflops: float
    bf16_tflops: float


GPUS = {
    "a100": Hardware("NVIDIA A100 80 GB", 80, 19.5, 312),
    "h100": Hardware("NVIDIA H100 SXM", 80, 67, 989),
    "h200": Hardware("NVIDIA H200 SXM", 141, 67, 989),
    "l4": Hardware("NVIDIA L4", 24, 30.3, 121),
    "l40s": Hardware("NVIDIA L40S", 48, 91.6, 362),
    "rtx4090": Hardware("NVIDIA GeForce RTX 4090", 24, 82.6, 165),
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one run needs.

    Attributes:
        memory_gb: memory of its process on the GPU, in GB.
        alone_seconds: least time of a run that has the GPU to itself.
        share_seconds: time that it adds to a study with ``at_once`` runs at a time.
        at_once: number of runs at a time: ``AT_ONCE``, or fewer if the memory is not enough.
    """

    memory_gb: float
    alone_seconds: float
    share_seconds: float
    at_once: int


def estimate(protocol: TrainingProtocol, cost: ModelCost, gpu: Hardware) -> Estimate:
    """The needs of a run of this protocol and model on a GPU."""
    training, model, evaluation = protocol.training, protocol.model, protocol.evaluation
    tokens = training.batch_size * model.context
    peak = gpu.fp32_tflops if training.precision == "fp32" else gpu.bf16_tflops
    evaluations = len(evaluation.steps_of(training.steps)) * evaluation.num_sequences * model.context / 3
    flops = cost.flops_per_token * (training.steps * tokens + evaluations)
    share = flops / (UTILISATION * peak * 1e12)
    launches = (LAUNCHES_PER_LAYER * model.num_layers + LAUNCHES_OUTSIDE) * training.accumulate
    launches *= LAUNCHES_COMPILED if training.compile else 1.0
    launching = launches * LAUNCH_SECONDS * training.steps
    memory = memory_gb(protocol, cost)
    at_once = min(AT_ONCE, max(1, int(0.9 * gpu.memory_gb / memory)))
    return Estimate(memory, max(share, launching), max(share, launching / at_once), at_once)


def memory_gb(protocol: TrainingProtocol, cost: ModelCost) -> float:
    """The memory of a run's process on a GPU, in GB."""
    training, model = protocol.training, protocol.model
    tokens = training.batch_size // training.accumulate * model.context
    kept = 1 if model.recompute else model.num_layers
    activations = tokens * model.width * kept * ACTIVATIONS_PER_CHANNEL * COMPUTE_BYTES[training.precision]
    logits = LOGIT_COPIES * 4 * tokens * model.vocab_size
    return CONTEXT_GB + (STATE_BYTES * cost.parameters + activations + logits) / 1e9
