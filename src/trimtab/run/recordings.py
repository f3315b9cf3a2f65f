"""Arrays that a run keeps beside its rows: what the trained model predicts, every token's spread at each reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

from trimtab.data.source import Tokens
from trimtab.probes.token_embedding_variability import row_deviations


def top_predictions(model: nn.Module, tokens: Int[Tensor, "B T_plus_1"], batch_size: int) -> NDArray[np.uint32]:
    """The likeliest next token after each prefix, (B, T), in eval mode; the model's mode is restored."""
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    with torch.no_grad():
        for piece in tokens.split(batch_size):
            output = model(piece[:, :-1])
            found.append(cast(Tensor, getattr(output, "logits", output)).argmax(-1).cpu())
    model.train(was_training)
    return torch.cat(found).numpy().astype(np.uint32)


@dataclass(slots=True)
class TokenRecorder:
    """Takes the deviation and the root mean square of every row of a token table, (V, D), at each reading."""

    table: nn.Parameter
    train: Tokens
    steps: list[int] = field(default_factory=list[int])
    deviations: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])
    sizes: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])

    def read(self, step: int) -> None:
        """Take the table as it is after ``step``; 0 is before training."""
        with torch.no_grad():
            table = self.table.detach().float()
            self.steps.append(step)
            self.deviations.append(row_deviations(table).cpu().numpy())
            self.sizes.append(table.square().mean(-1).sqrt().cpu().numpy())

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """``steps`` (R,), ``deviation`` and ``rms`` (R, V), and ``count`` (V,), of a token in the training text."""
        return {
            "steps": np.array(self.steps),
            "deviation": np.stack(self.deviations),
            "rms": np.stack(self.sizes),
            "count": np.bincount(self.train, minlength=self.table.shape[0]),
        }
