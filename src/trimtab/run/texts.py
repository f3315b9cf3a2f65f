"""The held-out loss of a trained model by block of text, to separate the variance over text from that over seeds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from trimtab.data import CorpusError, TokenData
from trimtab.data.source import Tokens
from trimtab.data.text_files import read_text
from trimtab.host import evaluating
from trimtab.loss import token_losses
from trimtab.run.spec import EvaluationConfig

BlockLosses = Mapping[str, list[float]]


def further_texts(data: TokenData, config: EvaluationConfig) -> dict[str, Tokens]:
    """The tokens of ``evaluation.texts``, by file name without its extension.

    Raises:
        CorpusError: if a file cannot be used, two parts have the same name, or the data have ids without text.
    """
    texts: dict[str, Tokens] = {}
    for name in config.texts:
        path = Path(name)
        if data.encode is None:
            raise CorpusError(f"{name}: the data are ids without text, so evaluation.texts cannot be encoded")
        if path.stem in texts or path.stem in data.held_out:
            raise CorpusError(f"{name}: a held-out text is named '{path.stem}' already; rename the file")
        texts[path.stem] = data.encode(read_text(path, "evaluation.texts"))
    return texts


def fingerprint_of(data: TokenData, config: EvaluationConfig) -> str:
    """Fingerprint of all text that a run reads: the data and the contents of ``evaluation.texts``."""
    if not config.texts:
        return data.fingerprint
    digest = hashlib.sha256(data.fingerprint.encode())
    for name, tokens in further_texts(data, config).items():
        digest.update(f"{name}:{len(tokens)}".encode())
        digest.update(np.ascontiguousarray(tokens).data)
    return digest.hexdigest()


def text_blocks(data: TokenData, config: EvaluationConfig, context: int) -> dict[str, Int[Tensor, "N W T_plus_1"]]:
    """Evenly spaced blocks of about ``block_bytes`` of each held-out part, as windows of context + 1 tokens.

    A block that would cross the boundary between two documents is omitted. A part shorter than a block has no blocks.
    """
    per_byte = 1.0 if math.isnan(data.bytes_per_token) else data.bytes_per_token
    windows = max(1, round(config.block_bytes / per_byte / context))
    length = windows * context + 1  # every token except the first is predicted once
    blocks: dict[str, Tensor] = {}
    for name, tokens in {**data.held_out, **further_texts(data, config)}.items():
        room = len(tokens) - length
        if room < 0:
            continue
        count = min(config.final_blocks, 1 + room // (length - 1))
        starts = np.unique(np.linspace(0, room, count).astype(np.int64))
        breaks = np.asarray(data.breaks.get(name, ()), dtype=np.int64)
        whole = [start for start in starts if not ((breaks > start) & (breaks < start + length)).any()]
        if whole:
            cuts = np.array(whole)[:, None, None] + np.arange(windows)[:, None] * context + np.arange(context + 1)
            blocks[name] = torch.from_numpy(tokens[cuts].astype(np.int64))
    return blocks


def block_losses(model: nn.Module, blocks: Mapping[str, Tensor], batch_size: int, device: torch.device) -> BlockLosses:
    """Mean loss per token of each block, in nats, in fp32 and eval mode; the mode of every submodule is restored."""
    losses: dict[str, list[float]] = {}
    with evaluating(model), torch.no_grad():
        for name, windows in blocks.items():
            pieces = windows.flatten(0, 1).split(batch_size)
            means = torch.cat([token_losses(model, piece.to(device)).mean(-1).cpu() for piece in pieces])
            losses[name] = means.view(windows.shape[:2]).double().mean(-1).tolist()
    return losses
