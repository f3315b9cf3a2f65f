"""Marks in saved weights: the entry ``trimtab.<slug>.installed`` names an intervention and its configuration.

Without a mark the weights of a model with ``soft_cap`` would load into a model without it, "all keys matched", and be
another function. A mark is the JSON text of the configuration as a tensor of bytes, so that every format can store it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.config import canonical
from trimtab.intervention import ModelIntervention

KEY = re.compile(r"(?P<prefix>(?:.*\.)?)trimtab\.(?P<slug>\w+)\.installed")


class SavedMethodError(RuntimeError):
    """Saved weights are those of another function than the model computes; nothing was loaded."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An intervention as saved weights name it.

    Attributes:
        slug: of the intervention.
        fields: its configuration, as in a configuration file.
        order: its place among the interventions of the model.
    """

    slug: str
    fields: Mapping[str, Any]
    order: int

    @classmethod
    def of(cls, intervention: ModelIntervention, order: int) -> Mark:
        """The mark of an intervention."""
        settings = fields(cast(Any, intervention)) if is_dataclass(intervention) else ()
        values = {setting.name: getattr(intervention, setting.name) for setting in settings if setting.init}
        return cls(intervention.slug(), {name: _storable(value) for name, value in values.items()}, order)

    @property
    def key(self) -> str:
        """Its name in the saved weights of a model."""
        return f"trimtab.{self.slug}.installed"

    def tensor(self) -> Tensor:
        """Its value in saved weights, bytes (N,)."""
        text = canonical({"fields": self.fields, "order": self.order})
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def says_the_same(self, intervention: ModelIntervention) -> bool:
        """Whether the intervention computes the same function; what sets initial weights alone does not matter."""
        mine, its = (
            {name: value for name, value in mark.fields.items() if name not in intervention.initial_fields}
            for mark in (self, Mark.of(intervention, 0))
        )
        return canonical(mine) == canonical(its)

    def __str__(self) -> str:
        return f"{self.slug}({', '.join(f'{name}={value!r}' for name, value in self.fields.items())})"


def _storable(value: object) -> object:
    """A value as JSON has it; of one that JSON cannot have, such as a function, the name."""
    try:
        return json.loads(canonical(value))
    except (TypeError, ValueError):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{getattr(value, '__module__', '')}.{name}"


def mark_from(slug: str, value: Sequence[int]) -> Mark:
    """The mark with these bytes.

    Raises:
        SavedMethodError: if they are no mark.
    """
    try:
        content = json.loads(bytes(value).decode())
        return Mark(slug, dict(content["fields"]), int(content["order"]))
    except (ValueError, KeyError, TypeError) as error:
        raise SavedMethodError(
            f"the entry trimtab.{slug}.installed of the saved weights is damaged: {error}"
        ) from error


def marks_in(state: Mapping[str, Any]) -> dict[str, Mark]:
    """The marks among saved weights by key, in the order of installation.

    Raises:
        SavedMethodError: if one is damaged.
    """
    found = {key: match for key in state if (match := KEY.fullmatch(key))}
    marks = {key: mark_from(match["slug"], state[key].tolist()) for key, match in found.items()}
    return dict(sorted(marks.items(), key=lambda item: item[1].order))
