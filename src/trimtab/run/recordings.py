"""Arrays that a run stores besides its rows: top predictions of the trained model, and statistics of every token."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

from trimtab.data import TokenData
from trimtab.data.source import Tokens
from trimtab.host import Part, SiteUnavailableError, evaluating
from trimtab.hosts import host_for
from trimtab.loss import logits_of
from trimtab.probes.token_embedding_variability import row_deviations
from trimtab.run.spec import ProbesConfig


def top_predictions(model: nn.Module, tokens: Int[Tensor, "B T_plus_1"], batch_size: int) -> NDArray[np.uint32]:
    """The most likely next token after each prefix, (B, T), in eval mode; the mode of every submodule is restored."""
    with evaluating(model), torch.no_grad():
        predictions = [logits_of(model, piece[:, :-1]).argmax(-1).cpu() for piece in tokens.split(batch_size)]
    return torch.cat(predictions).numpy().astype(np.uint32)


@dataclass(slots=True)
class TokenRecorder:
    """Records the standard deviation and the root mean square of every row of a token table (V, D) at each reading."""

    table: nn.Parameter
    train: Tokens
    steps: list[int] = field(default_factory=list[int])
    deviations: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])
    sizes: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])

    def read(self, step: int) -> None:
        """Record the table after ``step``; step 0 is before training."""
        with torch.no_grad():
            table = self.table.detach().float()
            self.steps.append(step)
            self.deviations.append(row_deviations(table).cpu().numpy())
            self.sizes.append(table.square().mean(-1).sqrt().cpu().numpy())

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """``steps`` (R,), ``deviation`` and ``rms`` (R, V), and ``count`` (V,) of each token in the training text."""
        return {
            "steps": np.array(self.steps),
            "deviation": np.stack(self.deviations),
            "rms": np.stack(self.sizes),
            "count": np.bincount(self.train, minlength=self.table.shape[0]),
        }


def token_recorder(model: nn.Module, config: ProbesConfig, data: TokenData) -> TokenRecorder | None:
    """The recorder of the token table, if the specification asks for it; it starts with the initial table.

    Raises:
        SiteUnavailableError: if the model's family, or the token table in it, is not known.
    """
    if not config.tokens:
        return None
    tables = [view.stored for view in host_for(model).find_parts() if view.part is Part.EMBEDDING]
    table = next((table for table in tables if table is not None), None)
    if table is None:
        raise SiteUnavailableError("probes.tokens: the model has no token embedding of its own; remove probes.tokens")
    recorder = TokenRecorder(table, data.train)
    recorder.read(0)
    return recorder
