"""Compute the outcome of a run from its rows, and decide whether the run stops early."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Literal

from trimtab.data import TokenData
from trimtab.run.folder import Outcome
from trimtab.run.spec import TrainingProtocol

SPIKE_WINDOW = 201


class Facts:
    """Accumulates the facts of the outcome row by row, and decides whether the run stops early."""

    def __init__(self, protocol: TrainingProtocol, data: TokenData) -> None:
        steps = protocol.training.steps
        self.evaluation = protocol.evaluation
        self.warmup_steps = protocol.schedule.warmup_steps
        self.half = steps / 2
        self.exploded_above = data.log_vocab + protocol.evaluation.explosion_margin
        self.final_steps = protocol.evaluation.final_steps_of(steps)
        self.held_out: list[tuple[int, float]] = []
        self.recent = deque[float](maxlen=SPIKE_WINDOW)
        self.steps = 0
        self.exploded_in_a_row = 0
        self.initial_loss = math.nan
        self.initial_norm = math.nan
        self.norm_ratio = 1.0
        self.spike = 0.0
        self.stopped: Literal["non_finite", "exploded"] | None = None

    def see(self, row: dict[str, int | float | None]) -> bool:
        """Add one row; returns True if the run must stop after it."""
        step = int(row["step"] or 0)
        loss = float(row["loss"] or 0.0)
        self.steps = step
        numbers = [] if step == 0 else [loss]
        if step > 0 and math.isfinite(loss):
            self.recent.append(loss)
            if step > self.warmup_steps:
                self.spike = max(self.spike, loss - statistics.median(self.recent))
        held_out = row.get("held_out_loss")
        norm = row.get("weight_norm")
        if held_out is not None and norm is not None:
            numbers += [held_out, norm]
            if step == 0:
                self.initial_loss = held_out
                self.initial_norm = norm
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
        """The outcome, from the rows so far."""
        final = [loss for step, loss in self.held_out if step in self.final_steps]
        if len(final) < len(self.final_steps):  # the run stopped early
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
