"""Choose what of a model is watched, and refuse what could not be."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trimtab.host import Host, Point
from trimtab.probe import Preset
from trimtab.sink import Sink
from trimtab.watching.parameters import Key, Weight, matrices_of, place, weights_of
from trimtab.watching.watch import Watch, WatchError


class NoMatchError(LookupError):
    """A pattern matches nothing that could be watched; nothing was changed."""


def watch(
    subject: Host | nn.Module,
    preset: Preset,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    only: Sequence[str] = (),
    sinks: Sequence[Sink] = (),
    every: int | None = None,
    rows: int | Literal["preset"] | None = "preset",
    exact: bool = False,
    run: str = "run",
    group: dist.ProcessGroup | Literal["world"] | None = "world",
) -> Watch:
    """Attach probes; before ``torch.compile``, and on every rank.

    With an optimizer the watch runs by itself: it reads at the first step and at every ``every``-th, and hands the row
    to the sinks. Without one, call ``read()`` after each pass that is to be read.

    Args:
        subject: a host, read by its sites; or any module, read by the names of its parts.
        optimizer: the optimizer whose steps are counted and measured.
        preset: which probes, how often and on how many rows; see ``trimtab.probes``.
        only: patterns of what to watch, of places such as ``qkv_output/layer.*`` or ``residual/*`` of a host, of module
            names such as ``*.q_proj`` of a module; empty takes everything (of a module, all parts that own a weight).
        sinks: take the rows; on rank 0 only.
        every: steps from one reading to the next, in place of the preset's.
        rows: token rows looked at per tensor and pass, in place of the preset's; None for all.
        exact: look at every query row of attention.
        run: name under which sinks open the run.
        group: the ranks to merge; ``"world"`` merges all if torch.distributed is initialised, None does not merge.

    Raises:
        WatchError: if the model is compiled already, or offers nothing to watch.
        NoMatchError: if a pattern of ``only`` matches nothing.
    """
    model = subject.model if isinstance(subject, Host) else subject
    _refuse_compiled(model)
    if every is not None and every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    if isinstance(rows, int) and rows < 1:
        raise ValueError(f"rows must be at least 1, or None for all, got {rows}")
    if isinstance(subject, Host):
        points = [((point.what, place(point.layer)), point) for point in subject.find_points()]
        attentions = [(("attention", place(point.layer)), point) for point in subject.find_attentions()]
        weights, matrices = weights_of(subject), matrices_of(subject)
    else:
        points, weights, matrices = _parts_by_name(subject, only)
        attentions = []
    if only and isinstance(subject, Host):
        keys = [key for key, _ in (*points, *attentions, *matrices)] + [weight.key for weight in weights]
        kept = _matching(only, ["/".join(key) for key in keys])
        points = [(key, point) for key, point in points if "/".join(key) in kept]
        attentions = [(key, point) for key, point in attentions if "/".join(key) in kept]
        weights = [weight for weight in weights if "/".join(weight.key) in kept]
        matrices = [(key, matrix) for key, matrix in matrices if "/".join(key) in kept]
    if optimizer is not None:
        _refuse_foreign(model, optimizer)
    if not points and not weights and not attentions and not matrices:
        raise WatchError(f"{type(model).__name__} offers nothing to watch")
    preset = replace(
        preset,
        every=preset.every if every is None else every,
        rows=preset.rows if rows == "preset" else rows,
        query_rows=None if exact else preset.query_rows,
    )
    found = [point for _, point in attentions]
    return Watch(
        model, points, found, weights, matrices, preset, optimizer=optimizer, sinks=sinks, run=run, group=group
    )


def _parts_by_name(
    model: nn.Module, only: Sequence[str]
) -> tuple[list[tuple[Key, Point]], list[Weight], list[tuple[Key, Callable[[], Tensor]]]]:
    modules = {name: module for name, module in model.named_modules() if name}
    chosen = _matching(only, list(modules)) if only else {n for n, m in modules.items() if _owns_weight(m)}
    points: list[tuple[Key, Point]] = []
    weights: list[Weight] = []
    matrices: list[tuple[Key, Callable[[], Tensor]]] = []
    for name, module in modules.items():
        if name in chosen:
            if not isinstance(module, nn.Embedding):  # whose input is token ids
                points += [(("input", name), Point("input", None, module, "input"))]
            points += [(("output", name), Point("output", None, module, "output"))]
            if _owns_weight(module):
                kind = "embedding_weight" if isinstance(module, nn.Embedding) else "weight"
                weight = Weight((kind, name), module)
                weights.append(weight)
                if weight.effective().ndim == 2 and kind == "weight":
                    matrices.append(((kind, name), weight.effective))
    return points, weights, matrices


def _owns_weight(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor)


def _matching(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    kept: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or list(names[:3])
            raise NoMatchError(f"'{pattern}' matches nothing; the nearest are {', '.join(near)}")
        kept |= found
    return kept


def _refuse_foreign(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if trained and not stepped & trained.keys():
        raise WatchError(
            "the optimizer holds none of the model's parameters; make it from model.parameters(), after fully_shard"
        )
    left = [name for number, name in trained.items() if number not in stepped]
    if left:
        warnings.warn(f"trimtab: no updates are read of {', '.join(left[:3])}: not of this optimizer", stacklevel=3)


def _refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            which = f"part '{name}' of the model" if name else "the model"
            raise WatchError(
                f"{which} is compiled already, and would pass hooks over: attach probes, then torch.compile"
            )
