"""Adapter of a trained model to EleutherAI's evaluation harness, which runs its tasks on the models of any study.

Example: ``lm_eval.simple_evaluate(model=HarnessModel(model, context=64), tasks=["lambada_openai"])``. The harness
defines the tasks, and downloads their data unless they are on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lm_eval.api.model import LM
from torch import Tensor, nn
from typing_extensions import override


def _to_bytes(text: str) -> list[int]:
    return list(text.encode())


def _from_bytes(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


class HarnessModel(LM):
    """Scores and continues text with a model that maps tokens (B, T) to logits, or to an object with ``logits``.

    Args:
        model: the model, which is set to eval mode and runs on the device of its parameters.
        context: longest input, in tokens. A longer text is truncated at its beginning; rolling scores are computed
            window by window.
        encode, decode: functions from text to token ids and back; UTF-8 bytes by default.
        start: token that precedes a text without context.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        context: int,
        encode: Callable[[str], list[int]] = _to_bytes,
        decode: Callable[[Sequence[int]], str] = _from_bytes,
        start: int = ord("\n"),
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.context = context
        self.start = start
        self.encode = encode
        self.decode = decode

    @override
    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        pairs = ((self.encode(before) or [self.start], self.encode(after)) for before, after in _args(requests))
        return [self._scored(before, after) for before, after in pairs]

    @override
    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return [self._rolling(self.encode(text)) for (text,) in _args(requests)]

    @override
    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self._generated(before, settings) for before, settings in _args(requests)]

    def _scored(self, before: list[int], after: list[int]) -> tuple[float, bool]:
        """Log-probability of ``after``, in nats, and whether each of its tokens is the most likely."""
        total, greedy = 0.0, True
        for start in range(0, len(after), self.context):  # a continuation longer than the context is scored in pieces
            piece = after[start : start + self.context]
            seen = ([*before, *after[:start]])[-(self.context - len(piece) + 1) :]
            log_p = self._log_probabilities([*seen, *piece[:-1]])[-len(piece) :]
            wanted = torch.tensor(piece, device=log_p.device)
            total += float(log_p.gather(-1, wanted[:, None]).sum())
            greedy = greedy and bool((log_p.argmax(-1) == wanted).all())
        return total, greedy

    def _rolling(self, tokens: list[int]) -> float:
        shifted = [self.start, *tokens]
        total = 0.0
        for start in range(0, len(tokens), self.context):
            piece = tokens[start : start + self.context]
            log_p = self._log_probabilities(shifted[start : start + len(piece)])
            total += float(log_p.gather(-1, torch.tensor(piece, device=log_p.device)[:, None]).sum())
        return total

    def _generated(self, before: str, settings: dict[str, Any]) -> str:
        tokens, made = self.encode(before) or [self.start], list[int]()
        stops = settings.get("until") or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        for _ in range(int(settings.get("max_gen_toks", 64))):
            made.append(int(self._log_probabilities([*tokens, *made][-self.context :])[-1].argmax()))
            text = self.decode(made)
            ends = [text.index(stop) for stop in stops if stop in text]
            if ends:
                return text[: min(ends)]
        return self.decode(made)

    def _log_probabilities(self, tokens: list[int]) -> Tensor:
        device = next(self.model.parameters()).device
        with torch.no_grad():
            output = self.model(torch.tensor([tokens], device=device))
        return F.log_softmax(getattr(output, "logits", output)[0].float(), dim=-1)


def _args(requests: list[Any]) -> list[tuple[Any, ...]]:
    return [request.args for request in requests]
