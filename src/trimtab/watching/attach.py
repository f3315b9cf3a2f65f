"""Choose what is watched of a model, and refuse what cannot be watched."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trimtab.host import AttentionPoint, Host, Point
from trimtab.probe import AttentionProbe, Preset, ScoreProbe
from trimtab.seams import find_attentions
from trimtab.sink import Sink
from trimtab.watching.errors import NoMatchError, WatchError
from trimtab.watching.fused import try_kernel
from trimtab.watching.metric import Place, where_of
from trimtab.watching.padding import Padding, is_batch_first
from trimtab.watching.parameters import Matrix, Weight, matrices_of, weights_of
from trimtab.watching.ranks import Ranks
from trimtab.watching.subject import Subject
from trimtab.watching.watch import Watch


def watch(
    subject: Host | nn.Module,
    preset: Preset,
    *,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    only: Sequence[str] = (),
    sinks: Sequence[Sink] = (),
    every: int | None = None,
    exact: bool = False,
    fused: bool = False,
    run: str = "run",
    step: int = 0,
    group: dist.ProcessGroup | Literal["world"] | None = "world",
) -> Watch:
    """Attach probes to a model; call it before ``torch.compile``, and in every process of a distributed training.

    With an optimizer the watch runs by itself: it reads at the first step and at every ``every``-th step, and hands the
    row to the sinks. Without an optimizer, call ``read()`` after each pass that is to be read.

    Args:
        subject: a host, whose points and parts are read; or any module, whose submodules are read by their names.
        optimizer: the optimizer whose steps are counted and measured; or several, such as Muon and AdamW, whose steps
            make up one step of training when each has made its own.
        preset: which probes, how often and at how many positions; see ``trimtab.probes``.
        only: patterns of what to watch: of places of a host, such as ``qkv_output/layer.*`` or ``residual/*``, or of
            names of submodules, such as ``*.q_proj``. Empty takes everything; of a module, all submodules with a
            weight.
        sinks: receive the rows, in the process of rank 0 only.
        every: steps from one reading to the next, in place of the preset's.
        exact: look at every position of attention and logits where the preset samples positions.
        fused: read each tensor once, where eager operations read it four times. On a CPU this needs a C compiler
            (``cc``, or that of the variable ``CC``), elsewhere ``torch.compile``.
        run: name under which sinks open the run.
        step: optimizer steps that were made before, of a training that resumes; rows go on from there.
        group: the processes to merge; ``"world"`` merges all if torch.distributed is initialised, None merges none.

    Raises:
        WatchError: if the model is compiled already or offers nothing to watch, if no meter reads one of the probes, if
            the model has nothing that a probe asked for by name reads, or if kernels cannot be compiled here.
        NoMatchError: if a pattern of ``only`` matches nothing.
    """
    model = subject.model if isinstance(subject, Host) else subject
    _refuse_compiled(model)
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    if every is not None and every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    preset = replace(
        preset,
        every=preset.every if every is None else every,
        query_rows=None if exact else preset.query_rows,
        logit_rows=None if exact else preset.logit_rows,
    )
    places = _of_host(subject, only) if isinstance(subject, Host) else _by_name(subject, only)
    optimizers = (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else tuple(optimizer or ())
    if optimizers:
        _refuse_foreign(model, optimizers)
    if places.is_empty:
        raise WatchError(f"{type(model).__name__} offers nothing to watch")
    if fused:
        _try_kernels(model)
    _report_attention(preset, places)
    watched = Subject(
        model,
        places.points,
        places.attentions,
        places.weights,
        places.matrices,
        preset,
        optimizers,
        Ranks(group),
        Padding(is_batch_first(model)),
        fused=fused,
    )
    return Watch(watched, sinks=sinks, run=run, step=step)


def _try_kernels(model: nn.Module) -> None:
    """Compile the kernels for the devices of the model, or say why they cannot be."""
    devices = {x.device for x in (*model.parameters(), *model.buffers())} or {torch.device("cpu")}
    try:
        for device in devices:
            try_kernel(device)
    except Exception as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise WatchError(
            f"fused=True needs kernels, which cannot be made here ({type(error).__name__}: {reason}); leave fused out"
        ) from error


def _report_attention(preset: Preset, places: _Places) -> None:
    """Warn of attention that a preset reads and that cannot be read here."""
    slugs = [probe.slug for probe in preset.probes if isinstance(probe, AttentionProbe | ScoreProbe)]
    if slugs and places.unreadable:
        more = f" (and {len(places.unreadable) - 1} more)" if len(places.unreadable) > 1 else ""
        warnings.warn(f"trimtab: no {' or '.join(slugs)} is read of {places.unreadable[0]}{more}", stacklevel=3)


@dataclass(frozen=True, slots=True)
class _Places:
    """What is watched of a model; see ``Subject``."""

    points: Sequence[tuple[Place, Point]]
    weights: Sequence[Weight]
    matrices: Sequence[tuple[Place, Matrix]]
    attentions: Sequence[tuple[Place, AttentionPoint]] = ()
    unreadable: Sequence[str] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.points or self.attentions or self.weights or self.matrices)


def _of_host(host: Host, only: Sequence[str]) -> _Places:
    points = [(Place(point.what, where_of(point.layer)), point) for point in host.find_points()]
    attentions = [(Place("attention", where_of(point.layer)), point) for point in host.find_attentions()]
    weights = weights_of(host)
    matrices = matrices_of(host)
    if only:
        offered = [place for place, _ in (*points, *attentions, *matrices)] + [weight.place for weight in weights]
        kept = _matching(only, [str(place) for place in offered])
        points = [(place, point) for place, point in points if str(place) in kept]
        attentions = [(place, point) for place, point in attentions if str(place) in kept]
        weights = [weight for weight in weights if str(weight.place) in kept]
        matrices = [(place, matrix) for place, matrix in matrices if str(place) in kept]
    return _Places(points, weights, matrices, attentions)


def _by_name(model: nn.Module, only: Sequence[str]) -> _Places:
    modules = {name: module for name, module in model.named_modules() if name}
    chosen = _matching(only, list(modules)) if only else {n for n, m in modules.items() if _weights_in(n, m)}
    points: list[tuple[Place, Point]] = []
    weights: list[Weight] = []
    matrices: list[tuple[Place, Matrix]] = []
    for name, module in modules.items():
        if name in chosen:
            if not isinstance(module, nn.Embedding):  # the input of an embedding is token ids
                points.append((Place("input", name), Point("input", None, module, "input")))
            points.append((Place("output", name), Point("output", None, module, "output")))
            for weight in _weights_in(name, module):
                weights.append(weight)
                if weight.effective().ndim == 2 and weight.place.what == "weight":
                    matrices.append((weight.place, weight.effective))
    found = find_attentions(model)
    attentions = [
        (Place("attention", name or "model"), point) for name, point in found.readable if not only or name in chosen
    ]
    return _Places(points, weights, matrices, attentions, () if only else found.others)


def _weights_in(name: str, module: nn.Module) -> list[Weight]:
    """The weight of a module, and its own parameters of two axes or more under other names, such as stacked experts."""
    weights: list[Weight] = []
    if isinstance(getattr(module, "weight", None), Tensor):
        weights.append(
            Weight(Place("embedding_weight" if isinstance(module, nn.Embedding) else "weight", name), module)
        )
    for attribute, parameter in module.named_parameters(recurse=False):
        if attribute != "weight" and parameter.ndim >= 2:
            weights.append(Weight(Place("weight", f"{name}.{attribute}"), module, attribute))
    return weights


def _matching(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    kept: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or list(names[:3])
            raise NoMatchError(f"'{pattern}' matches nothing; the nearest are {', '.join(near)}")
        kept |= matches
    return kept


def _refuse_foreign(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    stepped = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if trained and not stepped & trained.keys():
        raise WatchError(
            "the optimizer holds none of the model's parameters; make it from model.parameters(), after fully_shard"
        )
    missing = [name for number, name in trained.items() if number not in stepped]
    if missing:
        names = ", ".join(missing[:3])
        warnings.warn(f"trimtab: no updates are read of {names}: the optimizer does not hold them", stacklevel=3)


def _refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            which = f"part '{name}' of the model" if name else "the model"
            raise WatchError(
                f"{which} is compiled already, so that hooks would be ignored: attach probes, then torch.compile"
            )
