"""Rules on sharded models: AdaGC by shard against an oracle, and the state of rules in distributed checkpoints."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from trimtab.interventions import AdaGC
from trimtab.testing import rule_training
from trimtab.testing.rule_training import STEPS, WORLD, batch_of, make_model, make_optimizer, step_of, train_on_ranks

WARMUP, RATIO, BETA = 4, 1.05, 0.9


def shards(tensor: Tensor) -> tuple[Tensor, ...]:
    """The parts that FSDP2 gives to the processes: along the first dimension, the first ones larger."""
    return tensor.chunk(WORLD)


def clip_by_shard(model: nn.Module, step: int, averages: dict[tuple[str, int], list[float]]) -> None:
    """AdaGC on each shard, with loops: during the warm-up the norm over everything is clipped at 1."""
    grads = {(n, i): s for n, p in model.named_parameters() if p.grad is not None for i, s in enumerate(shards(p.grad))}
    total = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
    for key, grad in grads.items():
        norm = float(grad.norm())
        if step < WARMUP:
            grad.mul_(min(1.0, 1.0 / (total + 1e-6)))
            averages.setdefault(key, []).append(float(grad.norm()))
            if step == WARMUP - 1:
                seen = averages[key]
                averages[key] = [max(min(seen), AdaGC().warmup_floor * sum(seen) / len(seen))]
            continue
        (average,) = averages[key]
        limit = RATIO * average
        kept = min(norm, limit)
        averages[key] = [BETA * average + (1 - BETA) * kept]
        if norm > limit:
            grad.mul_(limit / (norm + AdaGC().eps))


@pytest.mark.slow
def test_ada_gc_by_shard_clips_each_shard_by_its_own_average(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = AdaGC(scope="shard", warmup_steps=WARMUP, ratio=RATIO, beta=BETA, norm_floor=0.0)
    together = train_on_ranks(rule)
    model = make_model()
    optimizer = make_optimizer(model)
    averages: dict[tuple[str, int], list[float]] = {}
    now = 0
    optimizer.register_step_pre_hook(lambda *_: clip_by_shard(model, now, averages))
    for now in range(STEPS):
        step_of(model, optimizer, now, [batch_of(now)])
    for name, expected in rule_training.weights_of(model).items():
        torch.testing.assert_close(together["fsdp"][name], expected, rtol=1e-6, atol=1e-8, msg=name)
    # By tensor the same training is another one, so the test can tell them apart.
    whole = rule_training.train(AdaGC(scope="tensor", warmup_steps=WARMUP, ratio=RATIO, beta=BETA, norm_floor=0.0))
    assert any(not torch.allclose(whole[name], together["fsdp"][name], rtol=1e-4) for name in whole)


def test_a_distributed_checkpoint_holds_the_state_of_rules_and_training_goes_on_with_the_same_bits() -> None:
    rule = AdaGC(warmup_steps=3)
    straight = rule_training.train(rule, steps=10)
    model, optimizer, _ = rule_training.start(rule)
    for step in range(5):
        step_of(model, optimizer, step, [batch_of(step)])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = get_optimizer_state_dict(model, optimizer)
    again, other, _ = rule_training.start(rule)
    again.load_state_dict(weights)
    set_optimizer_state_dict(again, other, state)
    for step in range(5, 10):
        step_of(again, other, step, [batch_of(step)])
    for name, value in rule_training.weights_of(again).items():
        assert torch.equal(value, straight[name]), name
