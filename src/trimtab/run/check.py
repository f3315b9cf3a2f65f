"""Check, before anything is written, whether a run can be carried out."""

from __future__ import annotations

import torch

from trimtab.config import ConfigError
from trimtab.data import TokenData
from trimtab.host import SiteUnavailableError
from trimtab.hosts import UnknownFamilyError
from trimtab.intervention import ConflictError
from trimtab.optim import OptimizerError
from trimtab.run.build import build, check_optimizer, start_rules
from trimtab.run.recordings import token_recorder
from trimtab.run.spec import RunSpec
from trimtab.run.texts import text_blocks

LEAST_BLOCKS = 2


def check_run(spec: RunSpec, data: TokenData, where: str, *, here: bool = True) -> None:
    """Build the model once on the CPU, and check the data and, for a run on this machine, the device.

    Raises:
        ConfigError: if the run cannot be carried out. The message names ``where`` and the setting.
        CorpusError: if a file of ``evaluation.texts`` cannot be used.
    """
    if here and spec.protocol.training.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{where}: training.device is cuda, but torch sees no CUDA device")
    context = spec.protocol.model.context
    for name, tokens in (("the training text", data.train), *data.held_out.items()):
        if len(tokens) <= context:
            raise ConfigError(
                f"{where}: {name} has {len(tokens)} tokens, fewer than one sequence of {context + 1}; "
                "lower model.context or give more text"
            )
    evaluation = spec.protocol.evaluation
    blocks = sum(len(windows) for windows in text_blocks(data, evaluation, context).values())
    if evaluation.final_blocks and blocks < LEAST_BLOCKS:
        raise ConfigError(
            f"{where}: the held-out text has room for {blocks} blocks of {evaluation.block_bytes} bytes, and "
            f"{LEAST_BLOCKS} are needed; lower evaluation.block_bytes or give more text"
        )
    try:
        model = build(spec, torch.device("cpu"))
        optimizer = check_optimizer(model, spec)
        start_rules(model, optimizer, spec)
    except (SiteUnavailableError, ConflictError, UnknownFamilyError, OptimizerError) as error:
        raise ConfigError(f"{where}: {error}") from error
    try:
        token_recorder(model, spec.protocol.probes, data)
    except (SiteUnavailableError, UnknownFamilyError) as error:
        raise ConfigError(
            f"{where}: probes.tokens: the token embedding of a {type(model).__name__} is not known; "
            "remove probes.tokens"
        ) from error
