"""Methods go in all or none, conflicts are errors, what goes in comes out, and the contract catches broken methods."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.change import Change, MergeError, SlotChange
from trimtab.host import Host, Part, PartView, Site, SiteUnavailableError, Slot, Tap, stored_weight
from trimtab.hosts import UnknownFamilyError
from trimtab.hosts.gpt import GPTHost
from trimtab.intervention import (
    ConflictError,
    GradientRule,
    Intervention,
    ModelEdit,
    ModelIntervention,
    ModuleSwap,
    RunningRule,
    Source,
    WeightRule,
)
from trimtab.interventions import GlobalClip, PreNormRemoval, QKNorm, SigmaReparam, SoftCap, SoftTemp
from trimtab.method import Method, NotInstallableError, RemovalError, install, installed_in
from trimtab.optim import AdamW
from trimtab.parameters import trained_parameters
from trimtab.testing import MethodContract

SOURCE = Source(title="none", arxiv="", place="", equation="")
CONFIG = GPTConfig(vocab_size=64, context=16, num_layers=1, num_heads=2, width=16)
MODERN = GPTConfig(
    vocab_size=64, context=16, num_layers=2, num_heads=2, width=16, positions="rotary", tied=False, norm="rms_norm"
)


def make_model(config: GPTConfig = CONFIG) -> GPT:
    torch.manual_seed(7)
    return GPT(config)


def tokens() -> Tensor:
    return torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))


def loss_of(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(tokens()[:, :-1]).flatten(0, 1), tokens()[:, 1:].flatten())


def adamw_step(model: nn.Module) -> None:
    optimizer = AdamW().build(trained_parameters(model), 1e-2)
    loss_of(model).backward()
    optimizer.step()
    optimizer.zero_grad()


def sgd_step(model: nn.Module) -> None:
    loss_of(model).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.05 * parameter.grad
    model.zero_grad()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)


class Poorer(GPTHost):
    """A family that lacks some sites and parts."""

    family = "poorer GPT"

    def __init__(self, model: nn.Module, hidden: Sequence[Site | Part]) -> None:
        super().__init__(model)
        self.hidden = set(hidden)

    @override
    def find_taps(self) -> Sequence[Tap]:
        return [tap for tap in super().find_taps() if tap.site not in self.hidden]

    @override
    def find_parts(self) -> Sequence[PartView]:
        return [view for view in super().find_parts() if view.part not in self.hidden]


# All or nothing


@pytest.mark.parametrize(
    ("method", "hidden", "named"),
    [
        (methods.qkv_norm, [Site.VALUE], "no site 'value'"),
        (methods.qkv_norm, [Part.ATTN_NORM], "no part 'attn_norm'"),
        (methods.qk_norm, [Site.KEY], "no site 'key'"),
        (methods.qk_norm_cap, [Site.SCORES], "no site 'scores'"),
        (methods.sigma_reparam, [Part.FC2], "no part 'fc2'"),
        (Method("x", (SigmaReparam(), SoftCap()), SOURCE), [Site.SCORES], "no site 'scores'"),
    ],
)
def test_a_method_whose_last_piece_is_missing_leaves_the_model_as_it_was(
    method: Method, hidden: list[Site | Part], named: str
) -> None:
    model = make_model()
    before, output, keys = state_of(model), model(tokens()), set(model.__dict__)
    parameters = [id(p) for p in model.parameters()]
    with pytest.raises(SiteUnavailableError, match=f"poorer GPT offers {named}; it offers .*") as caught:
        method.install(Poorer(model, hidden))
    assert not any(str(name) in str(caught.value).split("it offers")[1].split(", ") for name in hidden)
    assert_same_state(model, before)
    assert torch.equal(model(tokens()), output)
    assert installed_in(model) == ()
    assert set(model.__dict__) == keys
    assert [id(p) for p in model.parameters()] == parameters


def test_a_second_method_that_cannot_go_in_leaves_the_first_in_place() -> None:
    model = make_model()
    first = methods.qk_norm.install(host_for(model))
    before, output = state_of(model), model(tokens())
    with pytest.raises(SiteUnavailableError):
        Method("x", (SoftCap(), PreNormRemoval()), SOURCE).install(Poorer(model, [Part.ATTN_NORM]))
    assert installed_in(model) == first
    assert_same_state(model, before)
    assert torch.equal(model(tokens()), output)


def test_a_method_whose_last_change_fails_when_put_in_leaves_the_model_as_it_was() -> None:
    """Torch refuses a parametrization that changes the shape only when it is registered."""
    model = make_model()
    before, output = state_of(model), model(tokens())
    with pytest.raises(ValueError, match="shape"):
        Method("x", (QKNorm(), HalfRule()), SOURCE).install(host_for(model))
    assert installed_in(model) == ()
    assert_same_state(model, before)
    assert torch.equal(model(tokens()), output)


def test_the_baseline_changes_nothing_at_all() -> None:
    model = make_model()
    keys = set(model.__dict__)
    assert methods.baseline.install(host_for(model)) == ()
    assert set(model.__dict__) == keys


# Conflicts


def test_the_same_intervention_twice_is_a_conflict() -> None:
    model = make_model()
    methods.qk_norm.install(host_for(model))
    before = state_of(model)
    with pytest.raises(ConflictError, match="qk_norm would be installed twice"):
        methods.qk_norm_cap.install(host_for(model))
    assert_same_state(model, before)
    with pytest.raises(ConflictError, match="soft_cap would be installed twice"):
        install([SoftCap(cap=1.0), SoftCap(cap=2.0)], host_for(make_model()))


def test_two_swaps_of_one_part_are_a_conflict_at_once_and_one_after_the_other() -> None:
    with pytest.raises(ConflictError, match="both replace the same"):
        install([PreNormRemoval(), OtherNorm()], host_for(make_model()))
    model = make_model()
    install([PreNormRemoval()], host_for(model))
    with pytest.raises(ConflictError, match="both replace the same"):
        install([OtherNorm()], host_for(model))
    assert [one.slug for one in installed_in(model)] == ["pre_norm_removal"]


def test_two_rules_of_one_weight_are_a_conflict() -> None:
    model = make_model()
    with pytest.raises(ConflictError, match="both replace the same"):
        install([SigmaReparam(), DoublingRule()], host_for(model))
    assert installed_in(model) == ()


def test_a_weight_that_somebody_else_parametrized_is_a_conflict() -> None:
    model = make_model()
    torch.nn.utils.parametrize.register_parametrization(model.blocks[0].mlp.fc1, "weight", nn.Identity())
    with pytest.raises(ConflictError, match="parametrized already"):
        methods.sigma_reparam.install(host_for(model))


@pytest.mark.parametrize("order", [0, 1], ids=["swap first", "rule first"])
def test_a_rule_for_a_weight_whose_module_is_swapped_away_is_never_silently_inactive(order: int) -> None:
    """A module taken out of the model takes its weight rule along; saved weights must not break either."""
    model = make_model()
    pieces: list[ModelIntervention] = [OtherProj(), DoublingRule()]
    try:
        for piece in pieces if order == 0 else reversed(pieces):
            install([piece], host_for(model))
    except ConflictError:
        return
    model.state_dict()
    assert any("proj" in name and "parametrizations" in name for name, _ in model.named_modules())


def test_a_swap_and_a_weight_rule_of_one_part_in_one_method_conflict() -> None:
    model = make_model()
    with pytest.raises(ConflictError):
        install([OtherProj(), DoublingRule()], host_for(model))


def test_what_a_family_has_built_in_is_a_conflict() -> None:
    model = make_model()
    host = host_for(model)
    host.built_in = frozenset({"qk_norm"})
    with pytest.raises(ConflictError, match="trimtab GPT has qk_norm built in"):
        methods.qk_norm_cap.install(host)
    assert installed_in(model) == ()


def test_a_compiled_model_is_refused() -> None:
    model = make_model()
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(NotInstallableError, match=r"install methods first, then torch\.compile"):
        methods.qk_norm.install(GPTHost(compiled))  # pyright: ignore[reportArgumentType]
    model.compile(backend="eager")
    with pytest.raises(NotInstallableError):
        methods.qk_norm.install(host_for(model))
    assert installed_in(model) == ()


def test_no_host_is_found_for_an_unknown_model() -> None:
    with pytest.raises(UnknownFamilyError, match=r"no host knows Linear; known families: .*trimtab GPT"):
        host_for(nn.Linear(2, 2))


# Removal and merging


@pytest.mark.parametrize("slug", ["sigma_reparam", "qkv_norm"])
@pytest.mark.parametrize("step", [sgd_step, adamw_step])
def test_removal_after_training_is_refused_where_the_method_owns_weights(
    slug: str, step: Callable[[nn.Module], None]
) -> None:
    model = make_model()
    installed = methods.catalogue()[slug].install(host_for(model))
    step(model)
    model.eval()
    output, before = model(tokens()), state_of(model)
    with pytest.raises(RemovalError, match="the weights changed since it was installed"):
        installed[-1].remove()
    assert torch.equal(model(tokens()), output)
    assert_same_state(model, before)
    assert installed_in(model) == installed


def test_a_refusal_stands_after_another_method_was_removed() -> None:
    model = make_model()
    norm, _, removal = methods.qkv_norm.install(host_for(model))
    sgd_step(model)
    norm.remove()
    with pytest.raises(RemovalError):
        removal.remove()


def test_a_refusal_stands_after_another_method_came_and_went() -> None:
    model = make_model()
    (sigma,) = methods.sigma_reparam.install(host_for(model))
    sgd_step(model)
    with methods.qk_norm.applied(host_for(model)):
        pass
    with pytest.raises(RemovalError):
        sigma.remove()


@pytest.mark.parametrize("slug", ["qk_norm", "soft_cap", "qk_norm_cap", "layer_scale", "soft_clip", "soft_temp"])
def test_edits_can_be_removed_after_training(slug: str) -> None:
    model, plain = make_model(), make_model()
    installed = methods.catalogue()[slug].install(host_for(model))
    adamw_step(model)
    for one in installed:
        one.remove()
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens()), plain(tokens()))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)])
def test_the_order_of_removal_does_not_matter(order: tuple[int, ...]) -> None:
    model = make_model()
    output, before = model(tokens()), state_of(model)
    parameters = [id(p) for p in model.parameters()]
    pieces = [QKNorm(), SigmaReparam(), PreNormRemoval()]
    receipts = [install([piece], host_for(model))[0] for piece in pieces]
    for index in order:
        receipts[index].remove()
    assert torch.equal(model(tokens()), output)
    assert_same_state(model, before)
    assert [id(p) for p in model.parameters()] == parameters
    assert installed_in(model) == ()


@pytest.mark.parametrize("first", [0, 1])
def test_two_edits_of_one_site_come_out_one_by_one(first: int) -> None:
    model = make_model()
    receipts = [*install([SoftCap(cap=0.01)], host_for(model)), *install([SoftTemp()], host_for(model))]
    receipts[first].remove()
    expected = make_model()
    install([SoftTemp() if first == 0 else SoftCap(cap=0.01)], host_for(expected))
    assert torch.equal(model(tokens()), expected(tokens()))


def test_removing_twice_is_refused_and_leaves_nothing_behind() -> None:
    model = make_model()
    before, keys = state_of(model), set(model.__dict__)
    (one,) = methods.qk_norm.install(host_for(model))
    one.remove()
    with pytest.raises((RemovalError, ValueError), match="qk_norm"):
        one.remove()
    assert set(model.__dict__) == keys
    assert_same_state(model, before)


def test_an_old_receipt_cannot_take_out_a_new_installation() -> None:
    model = make_model()
    (old,) = install([PreNormRemoval()], host_for(model))
    old.remove()
    (new,) = install([PreNormRemoval()], host_for(model))
    output = model(tokens())
    with pytest.raises((RemovalError, ValueError)):
        old.remove()
    assert installed_in(model) == (new,)
    assert torch.equal(model(tokens()), output)


@pytest.mark.parametrize("num_steps", [0, 3])
def test_merging_sigma_reparam_keeps_the_outputs_and_the_plain_keys(num_steps: int) -> None:
    model, plain = make_model(), make_model()
    parameters = [name for name, _ in plain.named_parameters()]
    (installed,) = methods.sigma_reparam.install(host_for(model))
    for _ in range(num_steps):
        adamw_step(model)
    model.eval()
    output = model(tokens())
    installed.merge()
    assert torch.allclose(model(tokens()), output, atol=1e-6)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == parameters
    assert installed_in(model) == ()
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(plain(tokens()), output, atol=1e-6)


def test_merging_an_edit_or_a_swap_is_refused_and_changes_nothing() -> None:
    model = make_model()
    installed = methods.qkv_norm.install(host_for(model))
    before = state_of(model)
    for one in installed:
        with pytest.raises(MergeError, match=f"{one.slug} has no effective weight"):
            one.merge()
    assert installed_in(model) == installed
    assert_same_state(model, before)


@pytest.mark.parametrize("slug", list(methods.catalogue()))
def test_applied_restores_the_model_even_when_the_body_raises(slug: str) -> None:
    model = make_model()
    output, before = model(tokens()), state_of(model)

    def use() -> None:
        with methods.catalogue()[slug].applied(host_for(model)) as installed:
            assert installed_in(model) == installed
            model(tokens())
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        use()
    assert torch.equal(model(tokens()), output)
    assert_same_state(model, before)
    assert installed_in(model) == ()


def test_applied_refuses_to_take_trained_weights_out() -> None:
    model = make_model()

    def use() -> None:
        with methods.sigma_reparam.applied(host_for(model)):
            sgd_step(model)

    with pytest.raises(RemovalError):
        use()
    assert [one.slug for one in installed_in(model)] == ["sigma_reparam"]


def test_a_copy_of_a_model_has_its_own_method() -> None:
    model = make_model()
    methods.qkv_norm.install(host_for(model))
    before = state_of(model)
    twin = copy.deepcopy(model)
    assert_same_state(twin, before)
    for one in installed_in(twin):
        one.remove()
    assert list(twin.state_dict()) == list(make_model().state_dict())
    assert torch.equal(twin(tokens()), make_model()(tokens()))
    assert len(installed_in(model)) == 3
    assert_same_state(model, before)


# Saved weights


def test_saved_weights_carry_the_names_of_family_and_method() -> None:
    model = make_model()
    plain = set(model.state_dict())
    methods.qk_norm.install(host_for(model))
    assert set(model.state_dict()) - plain == {
        "trimtab.qk_norm.installed",
        *(f"trimtab.qk_norm.blocks.0.attn.{site}.{name}" for site in ("query", "key") for name in ("weight", "bias")),
    }
    assert plain <= set(model.state_dict())


def test_saved_weights_of_a_reparametrized_model_hold_the_stored_weight_under_its_own_name() -> None:
    model = make_model()
    plain = state_of(model)
    methods.sigma_reparam.install(host_for(model))
    state = model.state_dict()
    assert all(torch.equal(state[key], plain[key]) for key in plain)
    places = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert set(state) - set(plain) == {
        "trimtab.sigma_reparam.installed",
        *(f"trimtab.sigma_reparam.blocks.0.{place}.{name}" for place in places for name in ("gamma", "u", "v")),
    }


def test_saved_weights_of_two_methods_keep_their_names_whatever_the_order() -> None:
    one, two = make_model(), make_model()
    for piece in (QKNorm(), SigmaReparam(), SoftCap()):
        install([piece], host_for(one))
    for piece in (SoftCap(), SigmaReparam(), QKNorm()):
        install([piece], host_for(two))
    assert set(one.state_dict()) == set(two.state_dict())
    two.load_state_dict(one.state_dict())


def test_plain_weights_do_not_load_silently_into_a_model_with_a_method() -> None:
    model = make_model()
    methods.qk_norm.install(host_for(model))
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(make_model().state_dict())


def test_a_model_inside_another_module_saves_under_the_same_names_with_a_prefix() -> None:
    model = make_model()
    methods.sigma_reparam.install(host_for(model))
    outer = nn.ModuleDict({"inner": model})
    assert set(outer.state_dict()) == {f"inner.{key}" for key in model.state_dict()}
    outer.load_state_dict(outer.state_dict())


# Decay


@pytest.mark.parametrize("slug", list(methods.catalogue()))
def test_matrices_of_layers_decay_and_gains_and_scales_of_a_method_do_not(slug: str) -> None:
    model = make_model()
    family = {id(p) for p in model.parameters()}
    methods.catalogue()[slug].install(host_for(model))
    layers = {id(stored_weight(m)) for m in model.modules() if isinstance(m, nn.Linear)}
    optimizer = AdamW().build(trained_parameters(model), 1e-3)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and (id(parameter) in family or id(parameter) in layers)
        assert decays[id(parameter)] == (0.1 if matrix else 0.0), name


def test_a_matrix_that_a_method_adds_decays_where_it_is_the_weight_of_a_layer_and_else_does_not() -> None:
    for edit, decays in ((Mixing(), True), (HeadGains(), False)):
        model = make_model()
        family = {id(p) for p in model.parameters()}
        install([edit], host_for(model))
        optimizer = AdamW().build(trained_parameters(model), 1e-3)
        matrices = [p for p in optimizer.param_groups[0]["params"] if id(p) not in family]
        assert bool(matrices) is decays


def test_the_gradient_rules_of_a_method_are_not_installed_but_listed() -> None:
    method = Method("x", (GlobalClip(), QKNorm()), SOURCE)
    model = make_model()
    assert [one.slug for one in method.install(host_for(model))] == ["qk_norm"]
    assert method.gradient_rules == (GlobalClip(),)


# Interventions that are wrong on purpose, and a few that are right but unusual


class _Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., : x.shape[-1] // 2]


class _Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class _Leaky(nn.Module):
    def __init__(self, slot: Slot, leak: Callable[[Slot], object]) -> None:
        super().__init__()
        leak(slot)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def watched(before: Tensor, after: Tensor) -> None:
    pass


LEAKS: dict[str, Callable[[Slot], object]] = {
    "parameter": lambda slot: slot.register_parameter("leak", nn.Parameter(torch.ones(1))),
    "buffer": lambda slot: slot.register_buffer("leak", torch.ones(1)),
    "hook": lambda slot: slot.register_forward_hook(lambda *_: None),
    "watcher": lambda slot: slot.watchers.append(watched),
}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AtValue(ModelEdit):
    make: Callable[[Tap], nn.Module]
    source: ClassVar[Source] = SOURCE
    sites = (Site.VALUE,)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return self.make(tap)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Mixing(ModelEdit):
    source: ClassVar[Source] = SOURCE
    sites = (Site.ATTN_OUT,)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return nn.Linear(tap.width, tap.width)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HeadGains(ModelEdit):
    source: ClassVar[Source] = SOURCE
    sites = (Site.ATTN_OUT,)

    @override
    def edit(self, tap: Tap) -> nn.Module:
        return _Gains(tap.width)


class _Gains(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.ones(1, width))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x * self.gains


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class OtherNorm(ModuleSwap):
    source: ClassVar[Source] = SOURCE
    parts = (Part.ATTN_NORM,)

    @override
    def replacement(self, views: Sequence[PartView]) -> nn.Module:
        return nn.RMSNorm(16)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class OtherProj(ModuleSwap):
    source: ClassVar[Source] = SOURCE
    parts = (Part.PROJ,)

    @override
    def replacement(self, views: Sequence[PartView]) -> nn.Module:
        return nn.Linear(16, 16)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SwapForItself(ModuleSwap):
    source: ClassVar[Source] = SOURCE
    parts = (Part.PROJ,)

    @override
    def replacement(self, views: Sequence[PartView]) -> nn.Module:
        return views[0].module


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class DoublingRule(WeightRule):
    source: ClassVar[Source] = SOURCE
    parts = (Part.PROJ,)

    @override
    def rule(self, weight: Tensor) -> nn.Module:
        return _Double()


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class IdentityRule(WeightRule):
    source: ClassVar[Source] = SOURCE
    parts = (Part.PROJ,)

    @override
    def rule(self, weight: Tensor) -> nn.Module:
        return nn.Identity()


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HalfRule(WeightRule):
    source: ClassVar[Source] = SOURCE
    parts = (Part.PROJ,)

    @override
    def rule(self, weight: Tensor) -> nn.Module:
        return _Half()


@dataclass(eq=False)
class _Stuck(SlotChange):
    @override
    def undo(self) -> None:
        pass


class _Nowhere(ModelIntervention):
    source = SOURCE

    @override
    def prepare(self, host: Host) -> Sequence[Change]:
        return []


class _NotRemovable(ModelIntervention):
    source = SOURCE

    @override
    def prepare(self, host: Host) -> Sequence[Change]:
        return [_Stuck(tap.slot, _Double()) for tap in host.taps(Site.VALUE)]


class _ChangesWeights(ModelIntervention):
    """Touches the model while preparing."""

    source = SOURCE

    @override
    def prepare(self, host: Host) -> Sequence[Change]:
        with torch.no_grad():
            for view in host.parts(Part.PROJ):
                view.weight.mul_(2)
        return [SlotChange(tap.slot, _Double()) for tap in host.taps(Site.VALUE)]


class _Dead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class _CutsOff(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.detach()


class _Forgetful(nn.Module):
    """Keeps state that saved weights do not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.scale += 0.5 if self.training else 0.0
        return self.scale * x


class _IdleRule:
    """Changes no gradient, whatever comes."""

    def __call__(self) -> Tensor | None:
        return None

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        pass


class _Idle(GradientRule):
    source = SOURCE

    @override
    def start(self, parameters: Sequence[nn.Parameter]) -> RunningRule:
        return _IdleRule()


class _OfNoKind(Intervention):
    source = SOURCE


BROKEN: dict[str, Callable[[], Intervention]] = {
    "an edit that does nothing": lambda: AtValue(make=lambda _: nn.Identity()),
    "a weight rule that does nothing": IdentityRule,
    "a swap for the same module": SwapForItself,
    "an intervention that goes nowhere": _Nowhere,
    "an edit that changes the shape": lambda: AtValue(make=lambda _: _Half()),
    "a weight rule that changes the shape": HalfRule,
    "an edit that is not removable": _NotRemovable,
    "an intervention that changes weights": _ChangesWeights,
    "a dead parameter": lambda: AtValue(make=lambda _: _Dead()),
    "an edit that cuts gradients off": lambda: AtValue(make=lambda _: _CutsOff()),
    "a gradient rule that does nothing": _Idle,
    "an intervention of no kind that is tested": _OfNoKind,
    "an edit with unsaved state": lambda: AtValue(make=lambda _: _Forgetful()),
} | {
    f"a leaked {kind}": lambda leak=leak: AtValue(make=lambda tap: _Leaky(tap.slot, leak))
    for kind, leak in LEAKS.items()
}


# The contract


def contract_of(method: Callable[[], Method], config: GPTConfig) -> type[MethodContract]:
    class Contract(MethodContract):
        @override
        def make_method(self) -> Method:
            return method()

        @override
        def make_host(self) -> Host:
            return host_for(make_model(config))

    return Contract


def failures(contract: MethodContract) -> Iterable[str]:
    for name in sorted(vars(MethodContract)):
        if name.startswith("test_"):
            try:
                getattr(contract, name)()
            except (AssertionError, ValueError, RuntimeError):
                yield name


@pytest.mark.parametrize("broken", list(BROKEN))
def test_the_contract_catches(broken: str) -> None:
    contract = contract_of(lambda: Method("broken", (BROKEN[broken](),), SOURCE), CONFIG)
    assert list(failures(contract())), "no test of the contract failed"


@pytest.mark.parametrize(
    "piece",
    [Mixing(), DoublingRule(), OtherProj(), PreNormRemoval(), GlobalClip()],
    ids=lambda piece: type(piece).slug(),
)
def test_the_contract_lets_a_sound_intervention_pass(piece: Intervention) -> None:
    assert list(failures(contract_of(lambda: Method("sound", (piece,), SOURCE), CONFIG)())) == []


for _slug, _method in methods.catalogue().items():
    for _kind, _config in {"Classic": CONFIG, "Modern": MODERN}.items():
        _name = f"Test{_kind}{_slug.title().replace('_', '')}"
        globals()[_name] = type(_name, (contract_of(lambda method=_method: method, _config),), {})
