"""The specification of one run: every setting that determines its numbers, defaults included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Literal, cast

import torch
from torch import nn

from trimtab.config import Raw, to_plain
from trimtab.data import Classics, TokenSource
from trimtab.data.batches import BatchOrder
from trimtab.intervention import Intervention
from trimtab.interventions import GlobalClip
from trimtab.models.gpt import GPTConfig
from trimtab.optim import AdamW, OptimizerConfig, ScheduleConfig
from trimtab.probe import Preset
from trimtab.probes import PRESETS, named
from trimtab.run.compiling import Compiling, compiling

ModelBuilder = Callable[[GPTConfig], nn.Module]
OptimizerBuilder = Callable[[nn.Module, float], torch.optim.Optimizer]
# Upper bounds that no real run reaches. Larger numbers are mistakes; they would cause a hang or exhaust the memory.
_MOST_OF_TRAINING = {"steps": 10**8, "batch_size": 1 << 20, "accumulate": 1 << 20, "threads": 1024}
_MOST_OF_EVALUATION = {
    "evaluations": 100_000,
    "final_evaluations": 10_000,
    "num_sequences": 10**6,
    "explosion_patience": 10**6,
    "final_blocks": 10**6,
    "block_bytes": 1 << 30,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class UserCode:
    """User code that replaces a builder of trimtab. It is part of a run's identity.

    Attributes:
        model: called with a ``GPTConfig``; None builds the GPT of trimtab.
        optimizer: called with the model and the peak LR; None builds the configured optimizer.
    """

    model: ModelBuilder | None = None
    optimizer: OptimizerBuilder | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """The number of steps, the batch size, and the device.

    Attributes:
        steps: optimizer steps.
        batch_size: sequences per optimizer step.
        accumulate: micro-batches per optimizer step; must divide batch_size.
        threads: CPU threads of one run. The number changes the rounding, so it is part of the run's identity.
        compile: compile the model with ``torch.compile``; ``auto`` does so if the estimate of ``trimtab study --plan``
            says that it pays. The result differs in rounding.
        population: train the run as one model of a stack, with other runs of its arm if the executor has them. The
            result differs in rounding from a run that is trained alone.
        silent_seconds: a worker that reports no step for this time is considered stuck and is replaced. Not part of a
            run's identity.

    Raises:
        ValueError: if a count is not positive, or accumulate does not divide batch_size.
    """

    steps: int = 300
    batch_size: int = 32
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal[True, False, "auto"] = False
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    population: bool = field(default=False, metadata={"neutral": False})
    silent_seconds: float = field(default=1800.0, metadata={"identity": False})

    def __post_init__(self) -> None:
        for name, most in _MOST_OF_TRAINING.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie between 1 and {most:,}, got {getattr(self, name)}")
        if not self.silent_seconds > 0:
            raise ValueError(f"silent_seconds must be positive, got {self.silent_seconds}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """When the held-out loss is computed, and when a run that exploded is stopped.

    Attributes:
        evaluations: number of evaluations, evenly spaced over the run.
        final_evaluations: number of additional evaluations within the last 5 % of steps; the median of their losses is
            the final loss.
        num_sequences: number of held-out windows; every evaluation uses the same windows.
        explosion_margin: a held-out loss above ln V plus this margin counts as exploded, in nats.
        explosion_patience: the run stops after this number of consecutive exploded evaluations in its second half.
        final_blocks: number of blocks of each held-out part on which the trained model is evaluated separately; 0 turns
            this evaluation off.
        texts: paths of UTF-8 files, relative to the working folder. Each file is a further held-out part, used only for
            blocks.
        block_bytes: length of a block, in bytes of text; in tokens if the data have no text.

    Raises:
        ValueError: if a count is not positive or the margin is negative.
    """

    evaluations: int = 20
    final_evaluations: int = 5
    num_sequences: int = 128
    explosion_margin: float = 0.1
    explosion_patience: int = 5
    final_blocks: int = 0
    texts: tuple[str, ...] = field(default=(), metadata={"identity": False})
    block_bytes: int = 4096

    def __post_init__(self) -> None:
        for name, most in _MOST_OF_EVALUATION.items():
            least = 0 if name == "final_blocks" else 1
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie between {least} and {most:,}, got {getattr(self, name)}")
        if self.texts and not self.final_blocks:
            raise ValueError("texts are evaluated in blocks; set final_blocks too")
        if self.explosion_margin < 0:
            raise ValueError(f"explosion_margin must not be negative, got {self.explosion_margin}")

    def steps_of(self, num_steps: int) -> tuple[int, ...]:
        """The steps after which the held-out loss is computed, ascending; step 0 is before training."""
        spread = {round(i * num_steps / self.evaluations) for i in range(self.evaluations + 1)}
        return tuple(sorted(spread | set(self.final_steps_of(num_steps))))

    def final_steps_of(self, num_steps: int) -> tuple[int, ...]:
        """The steps whose median loss is the final loss."""
        last = max(1, num_steps // 20)
        ends = (
            num_steps - last + round(last * (i + 1) / self.final_evaluations) for i in range(self.final_evaluations)
        )
        return tuple(sorted({max(1, end) for end in ends}))


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbesConfig:
    """The probes that observe a run. They do not change its numbers.

    Attributes:
        preset: a preset of probes; see the catalogue of probes.
        named: slugs of probes that are added to those of the preset.
        every: number of steps between readings; 0 takes the interval of the preset, or 10 without a preset.
        tokens: store the standard deviation and the root mean square of every token's vector at each reading, 8 bytes
            per token.

    Raises:
        ValueError: if ``every`` is negative or above 10^8, a slug is unknown, or ``tokens`` is true and there are no
            probes.
    """

    preset: Literal["none", "cheap", "standard", "full"] = "none"
    named: tuple[str, ...] = ()
    every: int = 0
    tokens: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.every <= 10**8:
            raise ValueError(f"every must lie between 0 and 100,000,000, got {self.every}")
        self.probes()
        if self.tokens and self.probes() is None:
            raise ValueError('tokens are stored at readings, but there are no probes; set a preset, or named = ["tev"]')

    def probes(self) -> Preset | None:
        """The probes of the run; None if there are none."""
        preset = PRESETS.get(self.preset)
        return named(*self.named, of=preset) if self.named else preset


@dataclass(frozen=True, kw_only=True, slots=True)
class Seeds:
    """Seeds of separate random streams: initial weights, order of the data, and everything else."""

    init: int
    data: int
    other: int

    def __post_init__(self) -> None:
        for name in ("init", "data", "other"):
            if not 0 <= getattr(self, name) < 1 << 32:
                raise ValueError(f"{name} must lie between 0 and 2^32 - 1, got {getattr(self, name)}")

    @classmethod
    def all_equal(cls, seed: int) -> Seeds:
        """The same number for every stream."""
        return cls(init=seed, data=seed, other=seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProtocol:
    """The settings that the runs of one arm share: everything except method, learning rate and seeds.

    Attributes:
        common: interventions that are installed before those of the method, such as global clipping.
    """

    model: GPTConfig = field(default_factory=GPTConfig)
    data: TokenSource = field(default_factory=Classics)
    optimizer: OptimizerConfig = field(default_factory=AdamW)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    batches: BatchOrder = field(default_factory=BatchOrder, metadata={"neutral": BatchOrder()})
    common: tuple[Intervention, ...] = (GlobalClip(),)

    def __post_init__(self) -> None:
        if self.training.compile == "auto":  # settled here, so that every id and every stored file has the answer
            chosen = replace(self.training, compile=self.compiling().pays)
            object.__setattr__(self, "training", chosen)
        if self.model.vocab_size != self.data.vocab_size:
            raise ValueError(
                f"model.vocab_size {self.model.vocab_size} differs from the vocabulary size of the data, "
                f"{self.data.vocab_size}"
            )
        beyond = [step for step in self.batches.shuffled_steps if step > self.training.steps]
        if beyond:
            raise ValueError(
                f"batches.shuffled_steps {beyond[0]} is beyond the last step, training.steps {self.training.steps}"
            )
        if self.schedule.warmup_steps >= self.training.steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} must be below training.steps {self.training.steps}"
            )

    def compiling(self) -> Compiling:
        """What compilation costs and saves in a run of this protocol."""
        training = self.training
        return compiling(
            self.model, training.steps, training.batch_size, training.accumulate, training.threads, training.device
        )


SECTIONS = tuple(f.name for f in fields(TrainingProtocol))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """The complete specification of one run.

    Attributes:
        method: the interventions of the arm, after the common ones.
        learning_rate: peak LR.
        repeat: number of this repeat of a run that is otherwise the same. On the CPU a repeat needs another number of
            threads too; otherwise it gives the same numbers.
        code: builders from user code.
    """

    protocol: TrainingProtocol
    method: tuple[Intervention, ...] = ()
    learning_rate: float = 1e-3
    seeds: Seeds = field(default_factory=lambda: Seeds.all_equal(0))
    repeat: int = 0
    code: UserCode = field(default_factory=UserCode)

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        if self.repeat < 0:
            raise ValueError(f"repeat must not be negative, got {self.repeat}")

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """All interventions in order of installation."""
        return (*self.protocol.common, *self.method)

    def table(self) -> Raw:
        """The run as the tables that ``read_run`` reads. User code is not included; the run id identifies it."""
        protocol = cast(Raw, to_plain(self.protocol))
        keys: Raw = {
            "method": to_plain(self.method),
            "learning_rate": self.learning_rate,
            "seeds": to_plain(self.seeds),
        }
        return protocol | keys | ({"repeat": self.repeat} if self.repeat else {})
