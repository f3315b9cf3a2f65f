"""The contract of methods: a method acts, can be taken out, leaves nothing behind, trains, and can be saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from trimtab.change import InitialChange, SlotChange, SwapChange, WeightChange
from trimtab.host import Host, Listener, Site, Slot, Tap
from trimtab.intervention import GradientRule, LossTerm, ModelIntervention, UpdateRule
from trimtab.method import Method, RemovalError, installed_in
from trimtab.optim import AdamW
from trimtab.parameters import trained_parameters
from trimtab.testing.families import logits_of
from trimtab.testing.gradient_rule_contract import GradientRuleContract

TRAINING_STEPS = 3


class MethodContract(ABC):
    """Subclass, fill in the two hooks, and let pytest collect the tests."""

    @abstractmethod
    def make_method(self) -> Method:
        """The method under test."""

    @abstractmethod
    def make_host(self) -> Host:
        """A fresh host with random weights, the same ones on every call."""

    def tokens(self, host: Host) -> Tensor:
        """Token ids (B, T) that the model takes."""
        return torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))

    def test_every_edit_changes_a_large_input(self) -> None:
        """Each module that is put in is tried alone, so that a change of attention kernel cannot pass for an effect."""
        host = self.make_host()
        for receipt in self.make_method().install(host):
            for change in receipt.changes:
                if isinstance(change, WeightChange):
                    stored = parametrized(change.module)
                    assert stored is not None
                    weight = torch.randn(stored.shape, generator=torch.Generator().manual_seed(2))
                    assert not torch.equal(change.rule(weight), weight), f"{receipt.slug}: the rule changes nothing"
                if isinstance(change, SwapChange):
                    assert change.replacement is not change.original, f"{receipt.slug}: the part is swapped for itself"
                if isinstance(change, InitialChange):
                    for view, values in zip(change.views, change.values, strict=True):
                        assert torch.equal(view.weight, values.to(view.weight)), f"{receipt.slug}: values not written"
                if isinstance(change, SlotChange):
                    taps = {id(tap.slot): tap for tap in host.find_taps()}
                    tap = taps[id(change.slot)]
                    for slot in change.heard:
                        cast(Listener, change.edit).hear(_large_input(taps[id(slot)], seed=3) / 100)
                    x = _large_input(tap, seed=2)
                    assert not torch.equal(change.edit(x), x), (
                        f"{receipt.slug} at {tap.site} of layer {tap.layer} changes nothing; if it only keeps a tensor "
                        "for another layer, let the edit there hear it: see ModelEdit.places_heard"
                    )

    def test_every_edit_keeps_the_shape(self) -> None:
        """A forward pass succeeds: slots refuse an edit that changes a shape."""
        host = self.make_host()
        plain = logits_of(host.model, self.tokens(host))
        self.make_method().install(host)
        assert logits_of(host.model, self.tokens(host)).shape == plain.shape

    def test_the_method_is_somewhere(self) -> None:
        """Every intervention is of a kind that this contract tests, and those on the model change it."""
        host = self.make_host()
        method = self.make_method()
        kinds = (ModelIntervention, GradientRule, UpdateRule, LossTerm)
        untested = [i.slug() for i in method.interventions if not isinstance(i, kinds)]
        assert not untested, f"this contract has no tests for the kind of {', '.join(untested)}; see RuleContract"
        wanted = [i for i in method.interventions if isinstance(i, ModelIntervention)]
        assert len(method.install(host)) == len(wanted)
        assert all(len(receipt.changes) > 0 for receipt in installed_in(host.model))

    def test_removal_restores_outputs_keys_and_order_bitwise(self) -> None:
        """Right after install, removal leaves no trace."""
        host = self.make_host()
        tokens = self.tokens(host)
        plain = logits_of(host.model, tokens)
        keys = list(host.model.state_dict())
        parameters = [id(p) for p in host.model.parameters()]
        hooks = _num_hooks(host.model)
        with self.make_method().applied(host):
            logits_of(host.model, tokens)
        assert torch.equal(logits_of(host.model, tokens), plain)
        assert list(host.model.state_dict()) == keys
        assert [id(p) for p in host.model.parameters()] == parameters
        assert _num_hooks(host.model) == hooks
        assert installed_in(host.model) == ()

    def test_family_keys_stay_and_method_keys_are_marked(self) -> None:
        """Saved weights hold the family's keys, less those of parts taken out, plus ``trimtab.<slug>.``."""
        host = self.make_host()
        method = self.make_method()
        plain = set(host.model.state_dict())
        slugs = tuple(f"trimtab.{i.slug()}." for i in method.interventions)
        method.install(host)
        fresh = set(host.model.state_dict()) - plain
        assert all(key.startswith(slugs) for key in fresh), sorted(fresh)

    def test_saved_weights_load_into_another_model_with_the_method(self) -> None:
        """The outputs are the same after a round trip through the state dict."""
        first = self.make_host()
        second = self.make_host()
        method = self.make_method()
        method.install(first)
        self.train_a_little(first)
        method.install(second)
        second.model.load_state_dict(first.model.state_dict())
        first.model.eval()
        second.model.eval()
        tokens = self.tokens(first)
        assert torch.equal(logits_of(first.model, tokens), logits_of(second.model, tokens))

    def test_every_parameter_gets_a_gradient_in_training(self) -> None:
        """No parameter that the method adds is unused, and it cuts no part of the family off."""
        host = self.make_host()
        self.make_method().install(host)
        self.train_a_little(host)
        without = [name for name, p in host.model.named_parameters() if p.grad is None]
        assert not without, f"no gradient: {without}"
        for view in host.find_parts():
            stored = parametrized(view.module)
            if stored is not None and stored.grad is not None:
                grad = stored.grad.mT if view.transposed else stored.grad
                grad = grad if view.rows is None else grad[view.rows]
                assert grad.count_nonzero() > 0, f"the gradient of {view.part} in layer {view.layer} is zero"

    def test_after_training_it_is_removed_merged_or_refused(self) -> None:
        """Merging keeps the outputs; a refusal changes nothing."""
        host = self.make_host()
        installed = self.make_method().install(host)
        self.train_a_little(host)
        host.model.eval()
        tokens = self.tokens(host)
        for receipt in reversed(installed):
            trained = logits_of(host.model, tokens)
            try:
                receipt.remove()
                continue
            except RemovalError:
                assert torch.equal(logits_of(host.model, tokens), trained), "a refused removal changed the model"
            if all(change.mergeable for change in receipt.changes):
                receipt.merge()
                assert torch.allclose(logits_of(host.model, tokens), trained, atol=1e-5)
            break

    def test_every_gradient_rule_keeps_its_contract(self) -> None:
        """A method's gradient rules change no model, so they have a contract of their own."""
        for rule in self.make_method().gradient_rules:
            contract = _contract_of(rule)
            for name in dir(contract):
                if name.startswith("test_"):
                    getattr(contract, name)()

    def train_a_little(self, host: Host) -> None:
        """Take a few steps of trimtab's AdamW on random tokens; the gradients of the last step are kept."""
        host.model.train()
        tokens = self.tokens(host)
        optimizer = AdamW().build(trained_parameters(host.model), 1e-2)
        for _ in range(TRAINING_STEPS):
            host.model.zero_grad(set_to_none=True)
            logits = logits_of(host.model, tokens[:, :-1])
            F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
            optimizer.step()


def _contract_of(rule: GradientRule) -> GradientRuleContract:
    class Contract(GradientRuleContract):
        @override
        def make_rule(self) -> GradientRule:
            return rule

    return Contract()


def _large_input(tap: Tap, seed: int) -> Tensor:
    """A tensor of the site's documented shape, two sequences of eight tokens, with entries in the hundreds."""
    shape = (2, tap.num_heads, 8, tap.width or 8) if tap.num_heads else (2, 8, tap.width)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100 + 3
    return x.softmax(-1) if tap.site is Site.WEIGHTS else x


def parametrized(module: nn.Module) -> nn.Parameter | None:
    """The stored weight of a module, also behind a parametrization; None if the module has none."""
    if hasattr(module, "parametrizations"):
        return module.parametrizations.weight.original  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, nn.Parameter) else None


def _num_hooks(model: nn.Module) -> int:
    """The number of hooks and slot watchers in a model."""
    watchers = sum(len(module.watchers) for module in model.modules() if isinstance(module, Slot))
    return watchers + sum(
        len(hooks)
        for module in model.modules()
        for name, hooks in vars(module).items()
        if name.endswith("_hooks") and isinstance(hooks, dict)
    )
