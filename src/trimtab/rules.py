"""Rules of a training step: started for ``train``, or attached to the optimizer of a training loop of your own.

::

    rules = trimtab.rules.attach(optimizer, model, [AdaGC(), QKClip()])
    ...
    optimizer.step()  # as before: gradient rules act right before it, update rules right after it
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from trimtab.gradients import Gradients
from trimtab.hosts import UnknownFamilyError, host_for
from trimtab.intervention import ConflictError, GradientRule, Intervention, LossTerm, Trained, UpdateRule
from trimtab.loop import Rules

KEY = "trimtab_rules"  # of the state of the rules, in the first group of an optimizer's state


class RulesError(ValueError):
    """Rules cannot be attached to this optimizer, or not be applied to what it holds. The message gives the reason."""


def start(interventions: Iterable[Intervention], trained: Trained) -> Rules:
    """The running rules of these interventions, in their order; those that alter the model are passed over.

    Raises:
        ConflictError: if a rule is given twice or together with one that it replaces, or if something in the model
            makes a rule ineffective.
        SiteUnavailableError: if a rule needs a host or a part that there is not.
    """
    chosen = [one for one in interventions if isinstance(one, GradientRule | UpdateRule | LossTerm)]
    refuse_conflicts(chosen)
    return Rules(
        loss_terms=[one.start() for one in chosen if isinstance(one, LossTerm)],
        gradient=[one.start(trained.parameters) for one in chosen if isinstance(one, GradientRule)],
        update=[one.start(trained) for one in chosen if isinstance(one, UpdateRule)],
    )


def trained_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    copies: Sequence[nn.Module | Mapping[str, Tensor]] = (),
) -> Trained:
    """A training as rules see it: the trained parameters of a model, its host if one knows it, and its optimizer."""
    return Trained(
        model=model,
        parameters={name: p for name, p in model.named_parameters() if p.requires_grad},
        optimizer=optimizer,
        host=_host_of(model),
        copies=[_tensors_of(copy) for copy in copies],
    )


def refuse_conflicts(interventions: Sequence[Intervention]) -> None:
    """Refuse a rule that is given twice, or together with a rule that it replaces.

    Raises:
        ConflictError: if there is such a rule.
    """
    slugs = [one.slug() for one in interventions]
    for one in interventions:
        if isinstance(one, GradientRule | UpdateRule | LossTerm) and slugs.count(one.slug()) > 1:
            raise ConflictError(f"{one.slug()} would be applied twice")
        if isinstance(one, GradientRule) and (both := one.replaces & set(slugs)):
            raise ConflictError(
                f"{one.slug()} replaces {min(both)}, and both are given; leave {min(both)} out (in a study file: "
                "common = [] for this arm)"
            )


def attach(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    rules: Sequence[GradientRule | UpdateRule],
    *,
    copies: Sequence[nn.Module | Mapping[str, Tensor]] = (),
) -> AttachedRules:
    """Apply rules in every ``optimizer.step()`` of a plain training loop.

    Gradient rules act on the gradients as they are right before the step, update rules right after it. The state of the
    rules is saved and loaded with ``optimizer.state_dict()``, also if it is loaded before the rules are attached.

    Args:
        optimizer: a torch optimizer; ``step`` must be called without a closure. A gradient scaler must have unscaled
            the gradients (``scaler.unscale_(optimizer)``).
        model: the model that the optimizer trains; wrapped by DistributedDataParallel, sharded or compiled, too.
        rules: gradient rules and update rules, in the order in which they act.
        copies: modules or tables of tensors that follow the weights under the same names, such as an exponential moving
            average or fp32 master weights; a rule that scales weights scales them too.

    Returns:
        The attached rules; ``remove()`` takes them away.

    Raises:
        RulesError: if there are no rules, one is a loss term, or the optimizer holds none of the model's parameters.
        ConflictError, SiteUnavailableError: as for ``start``.
    """
    attached = AttachedRules(optimizer, model, rules, copies=copies)
    attached.hook(optimizer.register_step_pre_hook(attached.on_step))
    attached.hook(optimizer.register_step_post_hook(lambda *_: attached.after_step()))
    return attached


class AttachedRules:
    """Rules with an optimizer. Without ``attach``, call ``before_step`` and ``after_step`` around its step.

    Attributes:
        rules: the running rules.
        steps: optimizer steps so far.
        grad_norm: global L2 norm of the last gradients before any rule, 0-dim; None if no rule measures it.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        rules: Sequence[GradientRule | UpdateRule],
        *,
        copies: Sequence[nn.Module | Mapping[str, Tensor]] = (),
    ) -> None:
        model = _unwrapped(model)
        if not rules:
            raise RulesError("there are no rules to attach")
        for rule in rules:
            if not isinstance(rule, GradientRule | UpdateRule):
                raise RulesError(_no_rule_of_a_step(rule))
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) in held}
        if not self.parameters:
            raise RulesError(
                "the optimizer holds none of the model's parameters; make it from model.parameters(), after fully_shard"
            )
        missing = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in held]
        if missing:
            warnings.warn(
                f"trimtab: no rule acts on {', '.join(missing[:3])}: the optimizer does not hold them", stacklevel=3
            )
        self.optimizer = optimizer
        self.names = [rule.slug() for rule in rules]
        self.rules = start(rules, replace(trained_of(model, optimizer, copies), parameters=self.parameters))
        self.steps = 0
        self.grad_norm: Tensor | None = None
        self._handles: list[Any] = []
        early = optimizer.param_groups[0].get(KEY)  # a state that was loaded before the rules were there
        if early is not None:
            try:
                self.load_state_dict(early)
            except ValueError:
                self.remove()
                raise
            del optimizer.param_groups[0][KEY]
        self.hook(optimizer.register_state_dict_post_hook(self._save))
        self.hook(optimizer.register_load_state_dict_pre_hook(self._load))

    def hook(self, handle: Any) -> None:
        """Keep the handle of a hook, which ``remove`` takes away."""
        self._handles.append(handle)

    def on_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Hook before the step of the optimizer."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:
            raise RulesError(
                "the optimizer was given a closure, which makes the gradients after the rules have acted; call "
                "backward first, and then step without a closure"
            )
        self.before_step()

    def before_step(self) -> None:
        """Apply the gradient rules, and let the update rules look at the gradients.

        Raises:
            RulesError: if a gradient scaler has not unscaled the gradients.
        """
        if getattr(self.optimizer, "grad_scale", None) is not None:
            raise RulesError(
                "the gradients are still multiplied by the scale of the gradient scaler: call "
                "scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        self.steps += 1
        gradients = Gradients(self.parameters)
        self.grad_norm = None
        for rule in self.rules.gradient:
            measured = rule(self.steps, gradients)
            self.grad_norm = measured if self.grad_norm is None else self.grad_norm
        for rule in self.rules.update:
            rule.before_step(self.steps, gradients)

    def after_step(self) -> None:
        """Apply the update rules."""
        for rule in self.rules.update:
            rule(self.steps, self.parameters)

    def remove(self) -> None:
        """Take the rules away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for rule in self.rules.update:
            rule.remove()

    def state_dict(self) -> dict[str, Any]:
        """The state of the rules, which ``optimizer.state_dict()`` contains too."""
        return {"steps": self.steps, "rules": list(self.names), "state": self.rules.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state.

        Raises:
            ValueError: if it belongs to other rules.
        """
        if list(state["rules"]) != self.names:
            raise ValueError(
                f"the state belongs to the rules {', '.join(state['rules'])}, and these are {', '.join(self.names)}"
            )
        self.rules.load_state_dict(state["state"])
        self.steps = int(state["steps"])

    def _save(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        # In a group and not beside the groups: torch keeps only groups and moments when it loads.
        if state["param_groups"]:
            first, *others = state["param_groups"]
            state["param_groups"] = [{**first, KEY: self.state_dict()}, *others]

    def _load(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        groups = state["param_groups"]
        found = groups[0].get(KEY) if groups else None
        if found is None:
            warnings.warn("trimtab: the loaded state has no state of rules; they begin anew", stacklevel=2)
            return state
        self.load_state_dict(cast("Mapping[str, Any]", found))
        first = {key: value for key, value in groups[0].items() if key != KEY}
        return {**state, "param_groups": [first, *groups[1:]]}


def _no_rule_of_a_step(rule: object) -> str:
    if isinstance(rule, LossTerm):
        return (
            f"{rule.slug()} is a term of the loss, which an optimizer does not see: add "
            f"trimtab.rules.term({rule!r}, logits, targets) to the loss"
        )
    if isinstance(rule, Intervention):
        return f"{rule.slug()} alters the model: install it with a trimtab.Method"
    return f"{rule!r} is no rule; give gradient rules and update rules, such as AdaGC()"


def term(rule: LossTerm, logits: Tensor, targets: Tensor) -> Tensor:
    """A loss term for a training loop of your own, in nats: add it to the loss before ``backward``.

    Args:
        rule: such as ``ZLoss()``.
        logits: (..., V).
        targets: token ids (...), of the same leading axes; negative ids, as padding has, do not count.
    """
    counted = targets >= 0
    chosen = logits[counted].float()
    return rule.start()(1, chosen, targets[counted], lambda: chosen.logsumexp(-1))


def _host_of(model: nn.Module) -> Any:
    try:
        return host_for(model)
    except UnknownFamilyError:
        return None


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model within DistributedDataParallel and torch.compile."""
    while True:
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
        inner = getattr(model, "_orig_mod", inner)
        if inner is None:
            return model
        model = cast(nn.Module, inner)


def _tensors_of(copy: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return dict(copy.named_parameters()) if isinstance(copy, nn.Module) else copy
