"""Evaluation restores the mode of every submodule, not only that of the model."""

from __future__ import annotations

import pytest
from torch import nn

from trimtab import GPT, GPTConfig
from trimtab.host import evaluating


def modes_of(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_a_submodule_that_was_in_eval_mode_stays_in_it_and_the_others_train_again() -> None:
    model = GPT(GPTConfig(vocab_size=16, width=16, num_layers=2, num_heads=2, context=8)).train()
    model.blocks[0].eval()
    model.blocks[0].mlp.train()
    before = modes_of(model)
    assert len(set(before.values())) == 2
    with evaluating(model):
        assert not any(modes_of(model).values())
    assert modes_of(model) == before


def test_a_model_in_eval_mode_whose_submodule_trains_is_restored_even_when_the_block_raises() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))).eval()
    model[1][1].train()
    before = modes_of(model)

    def fail() -> None:
        with evaluating(model):
            assert not any(modes_of(model).values())
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert modes_of(model) == before
