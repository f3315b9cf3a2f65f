"""From tokens to batches; a training batch is a pure function of tokens, seed and step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from trimtab.data.source import CorpusError, Tokens


def training_batch(tokens: Tokens, *, seed: int, step: int, batch_size: int, context: int) -> Int[Tensor, "B T_plus_1"]:
    """Random windows of context + 1 tokens; the inputs are all but the last token, the targets all but the first.

    Raises:
        CorpusError: if the text is shorter than one window.
    """
    if len(tokens) <= context:
        raise CorpusError(f"{len(tokens)} tokens are fewer than one sequence of {context + 1}; lower model.context")
    starts = np.random.default_rng((seed, step)).integers(len(tokens) - context, size=batch_size)
    return torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))


def held_out_batch(held_out: Mapping[str, Tokens], *, num_sequences: int, context: int) -> Int[Tensor, "B T_plus_1"]:
    """Windows of context + 1 tokens, evenly spaced over all held-out parts; every call returns the same windows.

    Each part gives windows in proportion to its length, and at least one.

    Raises:
        CorpusError: if a part is shorter than one window.
    """
    windows: list[np.ndarray] = []
    total = sum(len(tokens) for tokens in held_out.values())
    for name, tokens in held_out.items():
        share = max(1, round(num_sequences * len(tokens) / total))
        if len(tokens) <= context:
            raise CorpusError(
                f"held-out part {name}: {len(tokens)} tokens are fewer than one sequence of {context + 1}; "
                "lower model.context or give more text"
            )
        starts = np.linspace(0, len(tokens) - context - 1, share).astype(np.int64)
        windows.append(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))
    return torch.from_numpy(np.concatenate(windows))
