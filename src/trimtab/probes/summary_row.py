"""What the ``summary`` preset keeps: the layers in a few numbers each, and the largest over the layers of the others.

A model of 12 layers has 56 keys.
"""

from __future__ import annotations

from trimtab.probe import Digest, Summary

OF_SUMMARY = ("rms", "max_abs", "l2_norm", "non_finite", "log_partition", "update_ratio", "sampled_max", "entropy")

ROLES = ("embedding_weight", "qkv_weight", "proj_weight", "fc1_weight", "fc2_weight", "head_weight", "weight")

ROW = Summary(
    tensors=frozenset({"residual"}),
    digests=(
        Digest(what="padding", statistic="known"),
        Digest(what="padding", statistic="share"),
        Digest(what="residual", statistic="rms"),
        Digest(what="residual", statistic="max_abs", over="model"),
        Digest(what="residual", statistic="non_finite", over="model", merge="sum"),
        Digest(what="attention", statistic="sampled_max", over="heads"),
        Digest(what="attention", statistic="sampled_max", over="model"),
        Digest(what="attention", statistic="entropy", over="heads", merge="min"),
        Digest(what="attention", statistic="entropy", over="model", merge="min"),
        Digest(what="logits", statistic="log_partition"),
        *(Digest(what=f"{role}_grad", statistic="l2_norm", over="model") for role in ROLES),
        *(Digest(what=role, statistic="update_ratio", over="model") for role in ROLES),
        Digest(what="all_grad", statistic="l2_norm"),
        Digest(what="all_grad", statistic="non_finite"),
        Digest(what="all_update", statistic="l2_norm"),
    ),
)
