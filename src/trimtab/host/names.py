"""The names of the places of a decoder: sites of tensors, and parts that own weights."""

from __future__ import annotations

from enum import StrEnum


class Site(StrEnum):
    """A place in a decoder where a tensor of fixed shape passes."""

    EMBEDDING = "embedding"  # BTD, what the first block receives
    ATTN_IN = "attn_in"  # BTD, after the pre-norm
    QUERY = "query"  # BHTK, before rotary
    KEY = "key"  # BHTK, before rotary
    VALUE = "value"  # BHTK
    QUERY_ROTATED = "query_rotated"  # BHTK
    KEY_ROTATED = "key_rotated"  # BHTK
    SCORES = "scores"  # BHTT, scaled, before the mask
    WEIGHTS = "weights"  # BHTT, after the softmax
    HEAD_OUT = "head_out"  # BHTK, between attention and Proj
    ATTN_OUT = "attn_out"  # BTD, before the residual add
    MLP_IN = "mlp_in"  # BTD, after the pre-norm
    MLP_HIDDEN = "mlp_hidden"  # BTF, FC2's input
    MLP_OUT = "mlp_out"  # BTD, before the residual add
    RESIDUAL = "residual"  # BTD, after an add
    LOGITS = "logits"  # BTV


class Part(StrEnum):
    """The role of a module that owns weights."""

    ATTN_NORM = "attn_norm"
    Q = "q"
    K = "k"
    V = "v"
    PROJ = "proj"
    MLP_NORM = "mlp_norm"
    FC1 = "fc1"
    FC2 = "fc2"
    FINAL_NORM = "final_norm"
    EMBEDDING = "embedding"
    HEAD = "head"
