"""The kinds of intervention, where each comes from, and how one is put in and taken out."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast, runtime_checkable

from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from trimtab.host import Host, Part, PartView, Site, Slot, Tap


class ConflictError(ValueError):
    """Two interventions, or an intervention and the family, claim the same thing; nothing was changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a method comes from.

    Attributes:
        title: of the paper.
        arxiv: its identifier; empty if there is none.
        place: section, equation or measure in the paper.
        equation: the method in one line of plain mathematics.
        deviations: each choice of ours where the paper is silent, uncertain, or not followed.
    """

    title: str
    arxiv: str
    place: str
    equation: str
    deviations: tuple[str, ...] = ()


class Change(Protocol):
    """One reversible alteration of a model."""

    freely_removable: bool

    def apply(self) -> None: ...

    def undo(self) -> None: ...

    def merge(self) -> None: ...

    def claims(self) -> Sequence[object]:
        """What no two changes may alter at once; nothing where changes stack."""
        ...

    def renames(self, slug: str, paths: dict[int, str]) -> dict[str, str]:
        """Prefixes of internal state-dict keys -> the prefixes they are saved under."""
        ...

    def own_modules(self) -> Iterable[nn.Module]:
        """The modules whose parameters belong to the method, not to the family."""
        ...


@dataclass(eq=False)
class SlotChange:
    """An edit added to a slot."""

    slot: Slot
    edit: nn.Module
    freely_removable: bool = True

    def apply(self) -> None:
        self.slot.append(self.edit)

    def undo(self) -> None:
        self.slot.discard(self.edit)

    def merge(self) -> None:
        raise MergeError("an edit of activations has no effective weight to merge; use remove()")

    def claims(self) -> Sequence[object]:
        return ()

    def renames(self, slug: str, paths: dict[int, str]) -> dict[str, str]:
        path = paths[id(self.slot)]
        index = list(self.slot).index(self.edit)
        return {f"{path}.{index}.": f"trimtab.{slug}.{path}."}

    def own_modules(self) -> Iterable[nn.Module]:
        return (self.edit,)


@dataclass(eq=False)
class SwapChange:
    """A part played by another module."""

    view: PartView
    replacement: nn.Module
    original: nn.Module
    freely_removable: bool = False

    def apply(self) -> None:
        self.view.replace(self.replacement)

    def undo(self) -> None:
        self.view.replace(self.original)

    def merge(self) -> None:
        raise MergeError(f"the swapped {self.view.part} has no effective weight to merge")

    def claims(self) -> Sequence[object]:
        # The weight too: a rule on the module that is swapped out would be silently inactive.
        return ((id(self.view.owner), self.view.attribute), (id(self.original), "weight"))

    def renames(self, slug: str, paths: dict[int, str]) -> dict[str, str]:
        path = f"{paths[id(self.view.owner)]}.{self.view.attribute}".lstrip(".")
        return {f"{path}.": f"trimtab.{slug}.{path}."}

    def own_modules(self) -> Iterable[nn.Module]:
        return (self.replacement,)


@dataclass(eq=False)
class WeightChange:
    """A weight seen through a parametrization."""

    module: nn.Module
    rule: nn.Module
    freely_removable: bool = False

    def apply(self) -> None:
        parametrize.register_parametrization(self.module, "weight", self.rule)

    def undo(self) -> None:
        self._take_out(keep_effective=False)

    def merge(self) -> None:
        self._take_out(keep_effective=True)

    def _take_out(self, *, keep_effective: bool) -> None:
        parametrize.remove_parametrizations(self.module, "weight", leave_parametrized=keep_effective)
        # torch puts the weight back behind the bias; the old order is the order of an optimizer's state.
        weight = self.module._parameters.pop("weight")
        self.module._parameters = {"weight": weight} | self.module._parameters

    def claims(self) -> Sequence[object]:
        return ((id(self.module), "weight"),)

    def renames(self, slug: str, paths: dict[int, str]) -> dict[str, str]:
        path = paths[id(self.module)]
        inner = f"{path}.parametrizations.weight"
        return {f"{inner}.original": f"{path}.weight", f"{inner}.0.": f"trimtab.{slug}.{path}."}

    def own_modules(self) -> Iterable[nn.Module]:
        return (self.rule,)


class MergeError(ValueError):
    """There is no effective weight to bake in; nothing was changed."""


class Intervention(ABC):
    """One change to training: a frozen dataclass whose fields are its configuration."""

    source: ClassVar[Source]

    @classmethod
    def slug(cls) -> str:
        """The name used in config tables, saved weights, reports and docs."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()


class ModelIntervention(Intervention):
    """An intervention that alters the model when it is installed."""

    @abstractmethod
    def prepare(self, host: Host) -> Sequence[Change]:
        """Build everything that will be put in, touching nothing.

        Raises:
            SiteUnavailableError: if the host lacks a site or part.
        """


class ModelEdit(ModelIntervention):
    """Edits of the tensors that pass at some sites."""

    @property
    @abstractmethod
    def sites(self) -> Sequence[Site]:
        """Where the edit goes."""

    @abstractmethod
    def edit(self, tap: Tap) -> nn.Module:
        """The module to put at one tap: a tensor in, a tensor of the same shape out."""

    @override
    def prepare(self, host: Host) -> Sequence[Change]:
        like = _first_parameter(host.model)
        return [
            SlotChange(tap.slot, self.edit(tap).to(like.device, like.dtype))
            for site in self.sites
            for tap in host.taps(site)
        ]


class ModuleSwap(ModelIntervention):
    """Another module in place of a part."""

    @property
    @abstractmethod
    def part(self) -> Part:
        """Which part is replaced."""

    @abstractmethod
    def replacement(self, module: nn.Module) -> nn.Module:
        """What plays the part instead of ``module``."""

    @override
    def prepare(self, host: Host) -> Sequence[Change]:
        return [SwapChange(view, self.replacement(view.module), view.module) for view in host.parts(self.part)]


class WeightRule(ModelIntervention):
    """A parametrization between the stored weight and the one used in the forward pass."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """Whose weights; parts that share one matrix (a fused QKV) get one rule for that matrix."""

    @abstractmethod
    def rule(self, weight: Tensor) -> nn.Module:
        """The module that maps the stored weight (out, in) to the effective one."""

    @override
    def prepare(self, host: Host) -> Sequence[Change]:
        modules = {id(v.module): v.module for part in self.parts for v in host.parts(part)}
        return [WeightChange(m, self.rule(cast(Tensor, m.weight))) for m in modules.values()]


@runtime_checkable
class RunningRule(Protocol):
    """A gradient rule at work: alters ``.grad`` in place, between backward and the optimizer step."""

    def __call__(self) -> Tensor | None:
        """Apply the rule; returns the global gradient norm before it, 0-dim, where the rule knows it."""
        ...

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...


class GradientRule(Intervention):
    """What happens to the gradients between backward and the optimizer step."""

    @abstractmethod
    def start(self, parameters: Sequence[nn.Parameter]) -> RunningRule:
        """A running rule over these parameters."""


def _first_parameter(model: nn.Module) -> Tensor:
    return next(model.parameters())
