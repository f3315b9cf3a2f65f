"""Carry out several runs of one arm as one stacked model; each has a run folder as if it were alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

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


class _Member:
    """One run of a population, with its model in the stack and its folder."""

    def __init__(
        self, spec: RunSpec, model: nn.Module, folder: RunFolder, progress: Callable[[int, float], None], facts: Facts
    ) -> None:
        self.spec = spec
        self.model = model
        self.matrices = weight_matrices(model)
        self.folder = folder
        self.progress = progress
        self.facts = facts
        self.seconds = 0.0


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
        """The loop; a run that stops early is finished at once and leaves the stack, so that it costs no more time."""
        training, protocol = self.protocol.training, self.protocol
        members = [
            _Member(spec, model, folder, partial(progress, index), Facts(protocol, self.data))
            for index, (spec, model, folder) in enumerate(zip(self.specs, self.stack.models, folders, strict=True))
        ]
        streams = [training_batches(protocol, self.data, spec.seeds.data, self.device) for spec in self.specs]
        outcomes: dict[str, Outcome] = {}

        def finish(member: _Member) -> None:
            name = member.folder.path.name
            outcomes[name] = finish_run(
                member.model, self.data, member.folder, member.facts, member.seconds, self.held_out
            )

        for step in range(training.steps + 1):
            started = time.monotonic()
            rate = protocol.schedule.factor(step - 1, training.steps) if step else 0.0
            self._record(members, step, rate, *self._step(step, rate, streams))
            for member in members:
                member.seconds += (time.monotonic() - started) / len(members)
            going = [index for index, member in enumerate(members) if member.facts.stopped is None]
            if len(going) < len(members):
                for member in members:
                    if member.facts.stopped is not None:
                        finish(member)
                members, streams = [members[index] for index in going], [streams[index] for index in going]
                if not members:
                    break
                self._keep(going)
        for member in members:
            finish(member)
        return [outcomes[folder.path.name] for folder in folders]

    def _step(
        self, step: int, rate: float, streams: Sequence[Iterator[Sequence[Tensor]]]
    ) -> tuple[list[float], list[float], list[float]]:
        """Training losses, gradient norms and loss terms of one step; step 0 trains nothing and has none."""
        if step == 0:
            nothing = [math.nan] * len(streams)
            return nothing, nothing, []
        pieces = [next(stream) for stream in streams]
        losses, penalties = self._backward(step, [torch.stack(list(piece)) for piece in zip(*pieces, strict=True)])
        norms = self._apply_rules(step)
        self.optimizer.step(rate)
        if not self.optimizer.advances_rules:
            self.stack.after_step()
        self.stack.zero_grad()
        return losses.tolist(), norms, [] if penalties is None else penalties.tolist()

    def _record(
        self,
        members: Sequence[_Member],
        step: int,
        rate: float,
        losses: list[float],
        norms: list[float],
        penalties: list[float],
    ) -> None:
        """Write a row for every run."""
        held_out = None
        if step in self.evaluated:
            held_out = self.stack.held_out_losses(self.held_out, EVALUATION_BATCH).tolist()
        for index, member in enumerate(members):
            row: dict[str, int | float | None] = {
                "step": step,
                "learning_rate": member.spec.learning_rate * rate,
                "loss": losses[index],
                "grad_norm": norms[index],
            }
            if penalties:
                row["penalty"] = penalties[index]
            if held_out is not None:
                row["held_out_loss"] = held_out[index]
                row["weight_norm"] = float(weight_norm(member.model, member.matrices))
            member.folder.append(row)
            member.folder.beat(step, losses[index])
            member.progress(step, losses[index])
            member.facts.see(row)

    def _keep(self, going: Sequence[int]) -> None:
        """Go on with some of the models."""
        self.stack.keep(going)
        self.optimizer.keep(going)
        self.named = [self.named[index] for index in going]
        self.rules = [self.rules[index] for index in going]

    def _backward(self, step: int, micro_batches: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        total = torch.zeros(len(self.stack.models), device=self.device)
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
        return [math.nan] * len(self.stack.models) if first is None else first.tolist()
