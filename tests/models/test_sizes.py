from __future__ import annotations

import pytest
import torch

from trimtab import GPT, host_for, methods
from trimtab.hosts import parameter_counts
from trimtab.models.sizes import SIZES


def test_the_paper_configuration_builds_on_the_meta_device_with_its_published_size():
    with torch.device("meta"):
        model = GPT(SIZES["paper-830M"])
    counts = parameter_counts(host_for(model))
    norms = counts["attn_norm"] + counts["mlp_norm"] + counts["final_norm"]
    assert sum(counts.values()) - norms == 12 * 24 * 1024**2 + 2 * 256_000 * 1024
    assert sum(counts.values()) == pytest.approx(830e6, rel=0.01)


@pytest.mark.parametrize("name", [name for name in SIZES if name.endswith("M")])
def test_a_size_has_about_the_parameters_its_name_says(name: str):
    with torch.device("meta"):
        model = GPT(SIZES[name])
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == pytest.approx(float(name.split("-")[-1].removesuffix("M")) * 1e6, rel=0.3)


@pytest.mark.parametrize("name", ["0.1M", "gpt2-124M"])
def test_the_parts_hold_every_parameter_but_learned_positions_once(name: str):
    with torch.device("meta"):
        model = GPT(SIZES[name])
    positions = 0 if model.position_embedding is None else model.position_embedding.weight.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter_counts(host_for(model)).values()) == total - positions


def test_a_fused_qkv_matrix_is_shared_out_over_its_parts():
    model = GPT(SIZES["0.1M"])
    counts = parameter_counts(host_for(model))
    assert counts["q"] == counts["k"] == counts["v"] == 4 * (40 * 40 + 40)


@pytest.mark.parametrize("name", [name for name in SIZES if name.startswith("deep-")])
@pytest.mark.parametrize("slug", ["baseline", "mlra", "deep_norm"])
def test_the_deep_sizes_build_on_the_meta_device_with_their_methods_and_equal_parameters(name: str, slug: str):
    with torch.device("meta"):
        model = GPT(SIZES[name])
        plain = sum(parameter.numel() for parameter in model.parameters())
        methods.catalogue()[slug].install(host_for(model))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(model.blocks) == int(name.split("-")[1])
    if slug == "mlra":
        assert sum(parameter.numel() for parameter in model.parameters()) == plain


def test_the_deepest_size_has_the_parameters_of_the_published_weights():
    with torch.device("meta"):
        model = GPT(SIZES["deep-192-gpt2"])
    assert sum(parameter.numel() for parameter in model.parameters()) * 4 == pytest.approx(1.9e9, rel=0.03)
