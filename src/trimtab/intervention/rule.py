"""The kinds of intervention that act in a training step: on the loss, on gradients, and on the update.

An intervention is configuration. ``start`` makes the running rule, which has state and belongs to one training.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from trimtab.host import Host
from trimtab.intervention.contract import Intervention

LogZ = Callable[[], Float[Tensor, "B T"]]
"""Returns log Z, the log-sum-exp of the logits of each token; it is computed at the first call only."""


@runtime_checkable
class Stateful(Protocol):
    """State that is saved with a training, by parameter name where it belongs to a parameter."""

    def state_dict(self) -> dict[str, object]:
        """The state: tensors, numbers, text and None in dicts with text keys and in lists."""
        ...

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take a state from ``state_dict``.

        Raises:
            ValueError: if it belongs to another rule or to other parameters; nothing is loaded.
        """
        ...


@runtime_checkable
class RunningRule(Stateful, Protocol):
    """A started gradient rule, which alters ``.grad`` in place between backward and the optimizer step."""

    def __call__(self, step: int, parameters: Mapping[str, nn.Parameter]) -> Tensor | None:
        """Apply the rule to the gradients of a step counted from 1; a parameter may have no gradient.

        ``parameters`` may be ``Gradients``, whose norms are shared by all rules of a step; ``Gradients.of`` makes them
        of other parameters. Returns the global gradient norm before the rule, 0-dim, where the rule knows it.
        """
        ...


@runtime_checkable
class RunningStackedRule(Protocol):
    """A gradient rule without state on the stacked parameters of K models."""

    def __call__(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, " K"] | None:
        """Change the gradients (K, ...) in place; returns the norms of the models' gradients before, if measured."""
        ...


class GradientRule(Intervention):
    """Alters the gradients between backward and the optimizer step.

    Attributes:
        replaces: slugs of rules in whose place this one stands; both together are a conflict.
    """

    replaces: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def start(self, parameters: Mapping[str, nn.Parameter]) -> RunningRule:
        """A running rule over these parameters, which it is called with at every step."""

    def start_stacked(self) -> RunningStackedRule | None:
        """The same rule for models whose parameters are stacked; None if each model needs a rule of its own."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A training that an update rule acts on.

    Attributes:
        model: the model.
        parameters: its trained parameters by name.
        optimizer: the optimizer that steps them; None if there is none yet.
        host: the host of the model; None if no host knows it.
        copies: copies of weights that follow the model, such as an exponential moving average or fp32 master weights:
            by the names of the parameters, which a rule changes in the same way.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer | None = None
    host: Host | None = None
    copies: Sequence[Mapping[str, Tensor]] = ()


@runtime_checkable
class RunningUpdateRule(Stateful, Protocol):
    """A started update rule. Inherit from it to get the methods that a rule does not need."""

    def before_step(self, step: int, parameters: Mapping[str, nn.Parameter]) -> None:
        """Look at parameters and their final gradients right before the optimizer steps."""

    def __call__(self, step: int, parameters: Mapping[str, nn.Parameter]) -> None:
        """Change parameters in place after an optimizer step counted from 1. Gradients are still there."""
        ...

    def remove(self) -> None:
        """Take away what the rule has attached to the model."""

    def state_dict(self) -> dict[str, object]:
        """As in ``Stateful``."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """As in ``Stateful``."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {sorted(state)}")


class UpdateRule(Intervention):
    """Alters parameters after the optimizer step."""

    @abstractmethod
    def start(self, trained: Trained) -> RunningUpdateRule:
        """A running rule for this training.

        Raises:
            SiteUnavailableError: if the rule needs a host or a part that there is not.
            ConflictError: if something in the model makes the rule ineffective.
        """


@runtime_checkable
class RunningLossTerm(Protocol):
    """A scalar in nats that is added to the loss of every micro-batch."""

    def __call__(
        self, step: int, logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"], log_z: LogZ
    ) -> Float[Tensor, ""]: ...

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...


class LossTerm(Intervention):
    """Adds a scalar to the loss."""

    @abstractmethod
    def start(self) -> RunningLossTerm:
        """The term of one training."""


Rule = GradientRule | UpdateRule | LossTerm
