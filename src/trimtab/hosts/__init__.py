"""Adapters, one file per model family, and the search for the right one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from inspect import isabstract

from torch import nn

from trimtab.host import Host, Part
from trimtab.hosts.gpt import GPTHost
from trimtab.hosts.gpt2 import GPT2Host
from trimtab.hosts.gpt_neox import GPTNeoXHost
from trimtab.hosts.llama_like import Gemma2Host, LlamaHost, Olmo2Host, Qwen3Host
from trimtab.hosts.nanochat_like import NanochatHost
from trimtab.hosts.nanogpt_like import NanoGPTHost
from trimtab.hosts.torch_encoder import TorchEncoderHost
from trimtab.registry import Catalogue

# The order in which families are asked; those of other packages come first, those in this list last.
OURS = (
    GPTHost,
    LlamaHost,
    Qwen3Host,
    Olmo2Host,
    Gemma2Host,
    GPT2Host,
    GPTNeoXHost,
    NanoGPTHost,
    NanochatHost,
    TorchEncoderHost,
)

_CATALOGUE = Catalogue[type[Host]](
    __name__,
    lambda value: isinstance(value, type) and issubclass(value, Host) and not isabstract(value) and _named(value),
    lambda host: host.__name__,
)
_REGISTERED: list[type[Host]] = []


def _named(host: type[Host]) -> bool:
    return "family" in vars(host)


def families() -> tuple[type[Host], ...]:
    """Every host: registered ones, those of other packages, then ours."""
    found = tuple(_CATALOGUE.all().values())
    others = tuple(host for host in found if host not in OURS)
    return (*_REGISTERED, *others, *OURS)


class UnknownFamilyError(TypeError):
    """No adapter knows this model."""


def register(family: type[Host]) -> type[Host]:
    """Let ``host_for`` find a host of one's own, before the built-in ones; also usable as a decorator."""
    if family not in _REGISTERED:
        _REGISTERED.insert(0, family)
    return family


def host_for(model: nn.Module) -> Host:
    """The adapter for a model, or for the one of a known family in it that holds all of its parameters.

    A model that is compiled or wrapped by ``DistributedDataParallel`` is not searched: what is installed in it
    afterwards would be ignored, or would not be synchronised.

    Raises:
        UnknownFamilyError: if no known family fits, or such a model is only a part of this one; the message lists the
            families that are known, or the parts.
    """
    family = _family_of(model)
    if family is not None:
        return family(model)
    known = "; ".join(family.family for family in families())
    wrapped = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
    if isinstance(wrapped, nn.Module):
        raise UnknownFamilyError(
            f"{type(model).__name__} wraps a {type(wrapped).__name__}: take the host of the model inside, before it is "
            "wrapped or compiled"
        )
    inside = list(_inside(model, ""))
    if len(inside) == 1:
        _, part, family = inside[0]
        held = {id(p) for p in part.parameters()}
        if all(id(p) in held for p in model.parameters()):
            return family(part)
    if inside:
        names = ", ".join(f"{name} ({type(part).__name__})" for name, part, _ in inside)
        raise UnknownFamilyError(
            f"{type(model).__name__} is no wrapper of one model: it has parameters beside {names}. Take the host of a "
            "model in it, or watch all of it without a host, by the names of its parts"
        )
    raise UnknownFamilyError(
        f"no host knows {type(model).__name__}; known families: {known}. To adapt another, subclass "
        "trimtab.hosts.decoder.DecoderHost with the names of its modules (docs/hosts.md), and hold it to "
        "trimtab.testing.HostContract; any module can be watched without a host, by the names of its parts"
    )


def _family_of(model: nn.Module) -> type[Host] | None:
    return next((family for family in families() if family.fits(model)), None)


def _inside(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, type[Host]]]:
    """The outermost modules within a module that a family fits, with their names and families."""
    for name, child in module.named_children():
        family = _family_of(child)
        if family is None:
            yield from _inside(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child, family


def host_or_model(model: nn.Module) -> Host | nn.Module:
    """The adapter for a model, or the model itself, to be read by the names of its parts, where no family fits."""
    try:
        return host_for(model)
    except UnknownFamilyError:
        return model


def parameter_counts(host: Host) -> Counter[Part]:
    """Parameters by part, each counted once: a tied head has none of its own, a shared QKV matrix is shared out.

    Parameters that belong to no part, such as learned positions, are not counted.
    """
    views = host.find_parts()
    sharers = Counter(id(view.module) for view in views)
    counts: Counter[Part] = Counter()
    seen: dict[int, int] = {}
    for view in views:
        for parameter in view.module.parameters():
            owner = seen.setdefault(id(parameter), id(view.module))
            if owner == id(view.module):
                counts[view.part] += parameter.numel() // sharers[owner]
    return counts
