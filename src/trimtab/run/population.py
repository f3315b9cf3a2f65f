"""Carry out several runs of one arm as one stacked model; each has a run folder as if it were alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trimtab.config import dump_toml
from trimtab.data import TokenData
from trimtab.data.batches import held_out_batch
from trimtab.gradients import Gradients
from trimtab.intervention import GradientRule, LossTerm, UpdateRule
from trimtab.loop import autocast
from trimtab.optim import AdamW, Muon
from trimtab.parameters import trained_parameters
from trimtab.population import NotStackableError, Stack, refusing
from trimtab.population.muon import StackedMuon
from trimtab.population.optimizer import EachAlone, StackedAdamW, StackedOptimizer
from trimtab.rules import refuse_conflicts
from trimtab.run.build import build, build_optimizer, weight_matrices, weight_norm
from trimtab.run.environment import environment
from trimtab.run.execute import EVALUATION_BATCH, finish_run, settings_of_torch, training_batches
from trimtab.run.facts import Facts
from trimtab.run.folder import Outcome, RunFolder
from trimtab.run.spec import RunSpec

Progress = Callable[[int, int, float], None]
STACKED: Mapping[type, Callable[..., StackedOptimizer]] = {AdamW: StackedAdamW, Muon: StackedMuon}


def execute_together(
    specs: Sequence[RunSpec],
    names: Sequence[str],
    runs: Path,
    data: TokenData,
    *,
    owned: Sequence[Callable[[], bool]],
    progress: Progress = lambda index, step, loss: None,
) -> list[Outcome]:
    """Train runs that differ in LR and seeds alone, and write their folders.

    Args:
        specs: the runs.
        names: their run ids.
        runs: the folder that holds run folders.
        data: the tokens of all runs.
        owned: for each run, whether this process may still write it.
        progress: called with the index of a run, the step and the training loss after every step.

    Raises:
        NotStackableError: if they cannot be trained together; nothing was written.
    """
    with settings_of_torch(specs[0]):
        population = _Population(specs, data)
        folders = [RunFolder(runs / name, own) for name, own in zip(names, owned, strict=True)]
        try:
            for folder, spec in zip(folders, specs, strict=True):
                record = environment(torch.device(spec.protocol.training.device))
                folder.begin(dump_toml(spec.table()), {**record, "population": len(specs)})
            return population.train(folders, progress)
        finally:
            for folder in folders:
                folder.close()


def refuse_unstackable(spec: RunSpec) -> None:
    """Refuse what a stack cannot do, before anything is built.

    Raises:
        NotStackableError: naming it.
    """
    if spec.protocol.probes.probes() is not None:
        raise NotStackableError("probes read one model at a time")
    if spec.protocol.training.compile:
        raise NotStackableError("training.compile is on")
    if spec.protocol.model.recompute:
        raise NotStackableError("model.recompute is on")
    for rule in spec.interventions:
        if isinstance(rule, UpdateRule):
            raise NotStackableError(f"{rule.slug()} acts on the parameters after a step")


def stack_refusal(spec: RunSpec, data: TokenData) -> str:
    """Why runs like this one cannot be trained as a stack; "" if they can."""
    try:
        _Population([spec, spec], data)
    except NotStackableError as error:
        return str(error)
    return ""


class _Population:
    """The models of several runs, and their optimizer and rules."""

    def __init__(self, specs: Sequence[RunSpec], data: TokenData) -> None:
        self.specs = specs
        self.data = data
        self.protocol = specs[0].protocol
        self.device = torch.device(self.protocol.training.device)
        refuse_unstackable(specs[0])
        refuse_conflicts(specs[0].interventions)
        models = [build(spec, self.device) for spec in specs]
        interventions = specs[0].interventions
        self.stack = Stack(models, [one.start() for one in interventions if isinstance(one, LossTerm)])
        for model in models:
            model.train()
        self.optimizer = self._optimizer()
        self.named = [{n: p for n, p in model.named_parameters() if p.requires_grad} for model in models]
        gradient = [one for one in interventions if isinstance(one, GradientRule)]
        stacked = [one.start_stacked() for one in gradient]
        self.stacked_rules = [one for one in stacked if one is not None]
        one_by_one = (
            [] if len(self.stacked_rules) == len(gradient) else gradient
        )  # all or none: the rules have an order
        self.rules = [[one.start(named) for one in one_by_one] for named in self.named]
        self.held_out = held_out_batch(
            data.held_out,
            num_sequences=self.protocol.evaluation.num_sequences,
            context=self.protocol.model.context,
        ).to(self.device)
        self.evaluated = frozenset(self.protocol.evaluation.steps_of(self.protocol.training.steps))
        self._try()

    def _optimizer(self) -> StackedOptimizer:
        config = self.protocol.optimizer
        build_stacked = STACKED.get(type(config))
        if build_stacked is not None and self.specs[0].code.optimizer is None:
            members = trained_parameters(self.stack.models[0], self.specs[0].interventions)
            return build_stacked(config, members, self.stack.parameters, [spec.learning_rate for spec in self.specs])
        return EachAlone(self.stack, lambda index: build_optimizer(self.stack.models[index], self.specs[index]))

    def _try(self) -> None:
        """One forward and backward pass and one evaluation, so that what cannot be vectorised is refused at once."""
        tokens = self.held_out[:1].expand(len(self.specs), -1, -1)
        losses, _ = self.stack.losses(tokens, 1, autocast(self.protocol.training.precision, self.device))
        with refusing():
            losses.sum().backward()
        self.stack.zero_grad()
        self.stack.held_out_losses(self.held_out[:1], 1)

    def train(self, folders: Sequence[RunFolder], progress: Progress) -> list[Outcome]:
        """The loop; a run that stops early is frozen, and its outcome is written at the end."""
        started = time.monotonic()
        training, protocol = self.protocol.training, self.protocol
        count = len(self.specs)
        facts = [Facts(protocol, self.data) for _ in range(count)]
        active = [True] * count
        matrices = [weight_matrices(model) for model in self.stack.models]

        def record(step: int, rate: float, losses: list[float], norms: list[float], penalties: list[float]) -> None:
            held_out = None
            if step in self.evaluated:
                held_out = self.stack.held_out_losses(self.held_out, EVALUATION_BATCH).tolist()
            for index in range(count):
                if not active[index]:
                    continue
                row: dict[str, int | float | None] = {
                    "step": step,
                    "learning_rate": self.specs[index].learning_rate * rate,
                    "loss": losses[index],
                    "grad_norm": norms[index],
                }
                if penalties:
                    row["penalty"] = penalties[index]
                if held_out is not None:
                    row["held_out_loss"] = held_out[index]
                    row["weight_norm"] = float(weight_norm(self.stack.models[index], matrices[index]))
                folders[index].append(row)
                folders[index].beat(step, losses[index])
                progress(index, step, losses[index])
                active[index] = not facts[index].see(row)

        nothing = [math.nan] * count
        record(0, 0.0, nothing, nothing, [])
        streams = [training_batches(protocol, self.data, spec.seeds.data, self.device) for spec in self.specs]
        for step, pieces in enumerate(zip(*streams, strict=True), start=1):
            if not any(active):
                break
            rate = protocol.schedule.factor(step - 1, training.steps)
            losses, penalties = self._backward(step, [torch.stack(list(piece)) for piece in zip(*pieces, strict=True)])
            norms = self._apply_rules(step)
            self.optimizer.step(rate, torch.tensor(active, device=self.device))
            if not self.optimizer.advances_rules:
                self.stack.after_step()
            self.stack.zero_grad()
            record(step, rate, losses.tolist(), norms, [] if penalties is None else penalties.tolist())
        seconds = (time.monotonic() - started) / count
        return [
            finish_run(model, self.data, folder, one, seconds, self.held_out)
            for model, folder, one in zip(self.stack.models, folders, facts, strict=True)
        ]

    def _backward(self, step: int, micro_batches: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        total = torch.zeros(len(self.specs), device=self.device)
        penalties = None
        for tokens in micro_batches:
            losses, penalty = self.stack.losses(tokens, step, autocast(self.protocol.training.precision, self.device))
            ((losses if penalty is None else losses + penalty).sum() / len(micro_batches)).backward()
            total += losses.detach() / len(micro_batches)
            if penalty is not None:
                share = penalty.detach() / len(micro_batches)
                penalties = share if penalties is None else penalties + share
        return total, penalties

    def _apply_rules(self, step: int) -> list[float]:
        """Apply the gradient rules of every run; returns the gradient norms before them, nan if no rule measures."""
        if not self.rules[0]:
            return self._apply_stacked_rules()
        self.stack.share_gradients()
        norms: list[Tensor] = []
        for rules, named in zip(self.rules, self.named, strict=True):
            gradients = Gradients(named)
            measured = [rule(step, gradients) for rule in rules]
            first = next((norm for norm in measured if norm is not None), None)
            norms.append(torch.tensor(math.nan) if first is None else first)
        return torch.stack([norm.to(self.device, torch.float32) for norm in norms]).tolist()

    def _apply_stacked_rules(self) -> list[float]:
        measured = [rule(self.stack.parameters) for rule in self.stacked_rules]
        first = next((norms for norms in measured if norms is not None), None)
        return [math.nan] * len(self.specs) if first is None else first.tolist()
