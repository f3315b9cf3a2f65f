"""A user's new kind of probe, with its own meter, needs no edit of trimtab."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.probe import Preset, Probe
from trimtab.watching import Guard, Meter, NotReadableError, Place, Reading, Subject, WatchError
from trimtab.watching.pack import Pack

CONFIG = GPTConfig(vocab_size=16, width=16, num_layers=2, num_heads=2, context=8)
EMPTY = Preset(name="mine", probes=(), every=1, query_rows=None, logit_rows=None, gradients=True, deep_weights=False)


class ShareMeter(Meter):
    """Counts the entries above a bound in the residual stream, and follows every stage of a reading."""

    name: ClassVar[str] = "share"
    stages: ClassVar[list[str]] = []

    def __init__(self, subject: Subject, probes: Sequence[Probe], pack: Pack) -> None:
        super().__init__(subject, probes, pack)
        self.places = [place for place in subject.forward if place.what == "residual"]
        self.reserve("counts", (len(probes), len(self.places), 2))

    @override
    def sees(self) -> Collection[Place]:
        return self.places

    @override
    def begin(self, guard: Guard) -> Sequence[Any]:
        self.stages.append("begin")
        return ()

    @override
    def see(self, place: Place, x: Tensor) -> None:
        counts = self.region("counts")
        for index, probe in enumerate(self.probes):
            assert isinstance(probe, ShareAbove)
            above = (x.abs() > probe.bound).sum()
            counts[index, self.places.index(place)] += torch.stack((above, torch.ones_like(x).sum())).to(counts.dtype)

    @override
    def read_gradients(self) -> None:
        self.stages.append("read_gradients")

    @override
    def before_step(self) -> None:
        self.stages.append("before_step")

    @override
    def after_step(self) -> None:
        self.stages.append("after_step")

    @override
    def values(self, passes: int) -> Sequence[Reading]:
        self.stages.append(f"values of {passes} passes")
        return [
            Reading([place.metric(probe.slug) for place in self.places], above / entries, entries)
            for probe, (above, entries) in zip(
                self.probes, (table.unbind(-1) for table in self.region("counts")), strict=True
            )
        ]

    @override
    def published(self, row: Any) -> None:
        self.stages.append(f"published step {row['step']}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareAbove(Probe):
    """Share of the entries of the residual stream whose magnitude is above a bound."""

    meter: ClassVar[type[Any] | None] = ShareMeter
    bound: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Orphan(Probe):
    """A kind of probe that no meter reads."""


def share_above(bound: float) -> ShareAbove:
    return ShareAbove(slug=f"above_{bound:g}", unit="share", meaning="share above", cost="named", bound=bound)


def make() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG)


def loss_of(model: GPT, seed: int = 0) -> Tensor:
    tokens = torch.randint(0, 16, (2, 9), generator=torch.Generator().manual_seed(seed))
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def test_a_new_kind_of_probe_is_read_by_its_own_meter_at_every_stage() -> None:
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ShareMeter.stages.clear()
    watching = watch(host_for(model), replace(EMPTY, probes=(share_above(0.5), share_above(2))), optimizer=optimizer)
    seen: dict[int, list[Tensor]] = {0: [], 1: []}
    for layer, block in enumerate(model.blocks):
        block.register_forward_hook(lambda module, args, output, layer=layer: seen[layer].append(output.detach()))
    for seed in range(2):
        (loss_of(model, seed) / 2).backward()
    optimizer.step()
    row = watching.last
    assert set(row) == {
        "step",
        "padding/model/known",
        *(f"residual/layer.{n}/above_{bound}" for n in (0, 1) for bound in ("0.5", "2")),
    }
    for layer, outputs in seen.items():
        for bound in (0.5, 2):
            expected = (torch.cat(outputs).abs() > bound).double().mean().item()
            assert row[f"residual/layer.{layer}/above_{bound:g}"] == pytest.approx(expected, rel=1e-12)
            assert expected < 1
    assert ShareMeter.stages == [
        *("begin", "read_gradients", "before_step", "after_step", "values of 2 passes", "published step 1"),
        "begin",
    ]
    assert watching.seconds["share"] > 0


def test_a_new_kind_of_probe_hooks_only_what_its_meter_sees() -> None:
    model = make()
    watching = watch(host_for(model), replace(EMPTY, probes=(share_above(1),)))
    hooked = {name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks}
    assert hooked == {"", "blocks.0", "blocks.1"}
    watching.remove()


def test_a_new_kind_of_probe_leaves_the_numbers_of_the_others_and_the_weights_as_they_are() -> None:
    rows: list[dict[str, float]] = []
    weights: list[Tensor] = []
    for more in ((), (share_above(1),)):
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        watching = watch(
            host_for(model),
            replace(probes.full, probes=(*probes.full.probes, *more)),
            optimizer=optimizer,
            every=1,
        )
        for seed in range(2):
            loss_of(model, seed).backward()
            optimizer.step()
            optimizer.zero_grad()
        rows.append(watching.last)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    mine = {key for key in rows[1] if key.endswith("above_1")}
    assert mine == {"residual/layer.0/above_1", "residual/layer.1/above_1"}
    assert rows[0] == {key: value for key, value in rows[1].items() if key not in mine}


def test_a_probe_that_no_meter_reads_is_refused_and_nothing_is_hooked() -> None:
    model = make()
    orphan = Orphan(slug="orphan", unit="1", meaning="none", cost="named")
    with pytest.raises(WatchError, match=r"no meter reads the probe 'orphan'; let Orphan\.meter name"):
        watch(host_for(model), replace(probes.cheap, probes=(*probes.cheap.probes, orphan)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class PickyMeter(ShareMeter):
    """Refuses every model when its first reading begins."""

    name: ClassVar[str] = "picky"

    @override
    def begin(self, guard: Guard) -> Sequence[Any]:
        raise NotReadableError("this model is too small")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picky(ShareAbove):
    meter: ClassVar[type[Any] | None] = PickyMeter


def test_a_meter_that_cannot_read_the_model_is_left_out_with_one_warning() -> None:
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    picky = Picky(slug="picky", unit="share", meaning="share above", cost="named", bound=1.0)
    with pytest.warns(UserWarning, match="trimtab: this model is too small"):
        watching = watch(host_for(model), replace(EMPTY, probes=(picky, share_above(1))), optimizer=optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(model).backward()
        optimizer.step()
    assert {key.rsplit("/", 1)[-1] for key in watching.last} == {"step", "known", "above_1"}


class ColludingMeter(ShareMeter):
    """Has the name of another meter, and so would write into its regions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Colluding(ShareAbove):
    meter: ClassVar[type[Any] | None] = ColludingMeter


def test_two_meters_cannot_share_a_region_of_the_pack() -> None:
    other = Colluding(slug="other", unit="share", meaning="share above", cost="named", bound=1.0)
    with pytest.raises(ValueError, match="there is a region 'share/counts' already"):
        watch(host_for(make()), replace(EMPTY, probes=(share_above(1), other)))


STAGES = ("begin", "see", "see_gradient", "see_attention", "read_gradients", "before_step", "after_step", "values")


def failing_at(stage: str) -> Probe:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError(f"in {stage}")

    def everywhere(self: Meter) -> Collection[Place]:
        return [*self.subject.forward, *self.subject.backward]

    body = {
        "name": "failing",
        "sees_attention": True,
        "sees": everywhere,
        "values": lambda self, passes: (),
        stage: fail,
    }
    meter = type("FailingMeter", (Meter,), body)
    kind = dataclass(frozen=True, kw_only=True)(type("Failing", (Probe,), {"meter": meter}))
    return kind(slug="failing", unit="1", meaning="none", cost="named")


@pytest.mark.parametrize("stage", [*STAGES, "published"])
def test_a_meter_that_fails_at_any_stage_is_switched_off_with_one_warning_and_training_goes_on(stage: str) -> None:
    states: list[dict[str, Tensor]] = []
    for watched in (False, True):
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if watched:
                watch(host_for(model), replace(EMPTY, probes=(failing_at(stage),)), optimizer=optimizer)
            for seed in range(4):
                loss_of(model, seed).backward()
                optimizer.step()
                optimizer.zero_grad()
        assert [str(one.message) for one in caught] == (
            [f"trimtab: probes are switched off after 3 errors; the last was ZeroDivisionError: in {stage}"]
            if watched
            else []
        )
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
