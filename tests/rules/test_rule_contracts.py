"""The rules of the catalogue under the contract of rules, and broken rules that the contract catches."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rules.broken_rules import (
    AsksForANumber,
    ForgetsItsCount,
    ForgetsState,
    ForThisRankOnly,
    LetsNaNIn,
    ReadsANumber,
    StaysAttached,
    SumsOverTokens,
)
from trimtab import interventions
from trimtab.intervention import GradientRule, LossTerm, UpdateRule
from trimtab.testing import LossTermContract, RuleContract
from trimtab.testing.rule_training import ActingRule

# Settings with which each rule acts within twelve steps.
SETTINGS: dict[str, dict[str, Any]] = {
    "ada_gc": {"warmup_steps": 4},
    "z_clip": {"warmup_steps": 4, "max_norm": 100.0},
    "global_clip": {},
    "qk_clip": {"threshold": 0.3},
    "update_clip": {},
}
RULES = {slug: kind for slug, kind in interventions.catalogue().items() if issubclass(kind, GradientRule | UpdateRule)}


def test_every_rule_is_held_to_the_contract() -> None:
    assert set(RULES) == set(SETTINGS)


def contract_of(rule: ActingRule) -> type[RuleContract]:
    class Contract(RuleContract):
        def make_rule(self) -> ActingRule:
            return rule

    return Contract


for _slug, _settings in SETTINGS.items():
    _name = "Test" + RULES[_slug].__name__
    globals()[_name] = type(_name, (contract_of(RULES[_slug](**_settings)),), {})  # pyright: ignore


@pytest.mark.parametrize(
    ("rule", "test"),
    [
        (ForgetsState(), "test_a_training_that_is_restored_goes_on_with_the_same_bits"),
        (ReadsANumber(), "test_it_reads_no_number_back_to_the_host"),
        (LetsNaNIn(), "test_what_is_not_finite_enters_no_state"),
        (ForThisRankOnly(), "test_two_processes_equal_one"),
        (StaysAttached(), "test_removal_leaves_nothing_attached"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_the_contract_catches_a_broken_rule(rule: ActingRule, test: str) -> None:
    with pytest.raises(AssertionError):
        getattr(contract_of(rule)(), test)()


# --- loss terms -------------------------------------------------------------------------------------------------------

TERM_SETTINGS: dict[str, dict[str, Any]] = {"z_loss": {"coefficient": 0.05}}
TERMS = {slug: kind for slug, kind in interventions.catalogue().items() if issubclass(kind, LossTerm)}


def test_every_loss_term_is_held_to_the_contract() -> None:
    assert set(TERMS) == set(TERM_SETTINGS)


def term_contract_of(term: LossTerm) -> type[LossTermContract]:
    class Contract(LossTermContract):
        def make_term(self) -> LossTerm:
            return term

    return Contract


for _slug, _settings in TERM_SETTINGS.items():
    _name = "Test" + TERMS[_slug].__name__
    globals()[_name] = type(_name, (term_contract_of(TERMS[_slug](**_settings)),), {})  # pyright: ignore


@pytest.mark.parametrize(
    ("term", "test"),
    [
        (ForgetsItsCount(), "test_a_training_that_is_restored_goes_on_with_the_same_bits"),
        (SumsOverTokens(), "test_four_micro_batches_are_one_batch"),
        (AsksForANumber(), "test_it_reads_no_number_back_to_the_host"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_the_contract_catches_a_broken_term(term: LossTerm, test: str) -> None:
    with pytest.raises(AssertionError):
        getattr(term_contract_of(term)(), test)()
