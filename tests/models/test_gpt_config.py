"""A size that no machine can hold is refused before torch sees it."""

from __future__ import annotations

import pytest

from trimtab.models.gpt import LARGEST, GPTConfig


@pytest.mark.parametrize("name", LARGEST)
def test_a_size_beyond_every_model_is_refused_by_its_name(name: str) -> None:
    for size in (LARGEST[name] + 1, 10**12):
        with pytest.raises(ValueError, match=f"{name} must be at most {LARGEST[name]}, got {size}"):
            GPTConfig(**{name: size})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_size_is_allowed(name: str) -> None:
    sizes = {"num_heads": 1, name: LARGEST[name]}
    if name == "num_heads":
        sizes["width"] = LARGEST["num_heads"]
    assert getattr(GPTConfig(**sizes), name) == LARGEST[name]  # pyright: ignore[reportArgumentType]
