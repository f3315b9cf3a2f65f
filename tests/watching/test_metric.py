"""Metric keys are written and read back without loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.watching import MetricKey, Place
from trimtab.watching.metric import where_of


@pytest.mark.parametrize(
    ("text", "layer", "head"),
    [
        ("query/layer.3/rms", 3, None),
        ("attention/layer.12.head.7/max_logit", 12, 7),
        ("fc1_weight/layer.0.gate/spectral_norm", 0, None),
        ("all_grad/model/l2_norm", None, None),
        ("output/stack.0/rms", None, None),
        ("parameter/blocks.layer.1.weight/update_ratio", None, None),
        ("weight/a/b/rms", None, None),
    ],
)
def test_a_key_is_read_back_as_it_was_written(text: str, layer: int | None, head: int | None) -> None:
    key = MetricKey.parse(text)
    assert str(key) == text
    assert (key.layer, key.head) == (layer, head)
    assert MetricKey(*key) == key


def test_the_name_of_a_module_may_contain_slashes_and_the_other_parts_may_not() -> None:
    assert MetricKey.parse("weight/a/b/rms") == MetricKey("weight", "a/b", "rms")


@pytest.mark.parametrize("text", ["", "step", "loss/rms", "/model/rms", "a//rms", "a/model/"])
def test_what_is_no_metric_key_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is not a metric key"):
        MetricKey.parse(text)


def test_heads_are_pooled_by_the_key_of_their_layer() -> None:
    key = MetricKey("attention", where_of(3, 1), "entropy")
    assert str(key) == "attention/layer.3.head.1/entropy"
    assert str(key.without_head) == "attention/layer.3/entropy"
    assert key.without_head.without_head == key.without_head
    assert key.place == Place("attention", "layer.3.head.1")
    assert str(key.place) == "attention/layer.3.head.1"


def test_every_key_of_a_row_is_a_metric_key() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=16, width=16, num_layers=2, num_heads=2, context=8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watching = watch(host_for(model), probes.named("training_map", of=probes.full), optimizer=optimizer, every=1)
    for seed in range(2):
        tokens = torch.randint(0, 16, (2, 9), generator=torch.Generator().manual_seed(seed))
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    optimizer.step()
    keys = [key for key in watching.last if key != "step"]
    assert len(keys) > 100
    assert [str(MetricKey.parse(key)) for key in keys] == keys
    assert {MetricKey.parse(key).head for key in keys} == {None, 0, 1}
