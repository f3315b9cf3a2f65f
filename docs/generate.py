"""Write the generated parts of README and docs; with --check, fail if one of them is stale."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import claims  # the page beside this file
import torch
from torch import nn

from trimtab import host_for
from trimtab.change import MergeError
from trimtab.cli import EXIT_CODES
from trimtab.host import SiteUnavailableError
from trimtab.intervention import ConflictError, ModelIntervention, Source
from trimtab.interventions import catalogue as interventions
from trimtab.method import Method, RemovalError
from trimtab.methods import catalogue as methods
from trimtab.optim import OptimizerConfig, OptimizerError
from trimtab.optim import catalogue as optimizers
from trimtab.probes import catalogue as probes
from trimtab.run.build import build, build_optimizer, start_rules
from trimtab.run.population import stack_refusal
from trimtab.run.reading import read_run
from trimtab.study.executors import catalogue as executors
from trimtab.testing.families import FAMILIES, logits_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/claims.md",
    "docs/methods.md",
    "docs/hosts.md",
    "docs/probes.md",
    "docs/optimizers.md",
    "docs/executors.md",
    "docs/rules.md",
)
TARGETS = tuple(ROOT / name for name in PAGES)


def link(source: Source) -> str:
    return f"[{source.arxiv}](https://arxiv.org/abs/{source.arxiv})" if source.arxiv else source.title


def method_table() -> str:
    rows = ["| method | what it does | paper |", "|---|---|---|"]
    for slug, method in methods().items():
        source = method.source
        rows.append(f"| `{slug}` | {cell(source.equation)} | {link(source)}, {cell(source.place)} |")
    return "\n".join(rows)


def method_details() -> str:
    parts: list[str] = []
    for slug, method in methods().items():
        source = method.source
        names = ", ".join(f"`{type(i).slug()}`" for i in method.interventions) or "nothing"
        heading = f"### `{slug}`\n\n{source.title}, {link(source)}, {source.place}."
        parts.append(f"{heading}\n\n    {source.equation}\n\nInstalls {names}.")
        if source.deviations:
            parts.append("Choices where the paper is silent, uncertain, or not followed:\n")
            parts[-1] += "\n" + "\n".join(f"- {deviation}" for deviation in source.deviations)
    return "\n\n".join(parts)


def intervention_table() -> str:
    rows = ["| intervention | kind | settings | equation |", "|---|---|---|---|"]
    for slug, kind in interventions().items():
        made = kind()
        settings = ", ".join(f"`{f.name} = {shown(getattr(made, f.name))}`" for f in fields(cast(Any, kind)))
        base = next(b.__name__ for b in kind.__mro__ if b.__module__.startswith("trimtab.intervention."))
        rows.append(f"| `{slug}` | {base} | {settings or 'none'} | {cell(kind.source.equation)} |")
    return "\n".join(rows)


def optimizer_table() -> str:
    """Our optimizers; ``rates``, which every optimizer has, is described in the text."""
    shared = {f.name for f in fields(OptimizerConfig)}
    rows = ["| optimizer | what it does | settings |", "|---|---|---|"]
    for slug, kind in optimizers().items():
        made = kind()
        own = (f.name for f in fields(kind) if f.name not in shared)
        settings = ", ".join(f"`{name} = {in_toml(getattr(made, name))}`" for name in own)
        rows.append(f"| `{slug}` | {cell(first_sentence(kind))} | {settings} |")
    return "\n".join(rows)


def executor_table() -> str:
    """The options of every executor, with the meaning from its docstring."""
    parts: list[str] = []
    for slug, executor in executors().items():
        parts += [f"### `{slug}`", "", first_sentence(executor), ""]
        meanings = attributes_of(executor)
        options = [field for field in fields(executor) if field.init]
        if options:
            parts += ["| option | default | meaning |", "|---|---|---|"]
            for option in options:
                default = option.default if option.default is not MISSING else ()
                text = "none" if default == () else in_toml(default)
                meaning = cell(meanings[option.name].replace("``", "`"))
                parts.append(f"| `{option.name}` | {text} | {meaning} |")
            parts.append("")
    return "\n".join(parts).rstrip()


def stackable() -> str:
    """Which methods and optimizers a population trains as one stack, found by trying each."""
    rows = ["| trained alone | why |", "|---|---|"]
    count = 0
    for kind, choices in (("method", methods()), ("optimizer", optimizers())):
        for slug, choice in choices.items():
            tables: dict[str, Any] = {
                "data": {"zipf_markov": {}},
                "model": {"width": 32, "num_layers": 1, "context": 16},
            }
            tables["learning_rate"] = 0.01
            if kind == "method":
                tables["method"] = slug
                if any(getattr(one, "replaces", ()) for one in choice.interventions):
                    tables["common"] = []
            else:
                tables["optimizer"] = {slug: {}}
            run = read_run(tables, "docs")
            why = stack_refusal(run, run.protocol.data.load())
            count += not why
            if why:
                rows.append(f"| {kind} `{slug}` | {cell(why.split('. ')[0])} |")
    return f"{count} of the methods and optimizers are stacked. The others:\n\n" + "\n".join(rows)


def attributes_of(kind: type) -> dict[str, str]:
    """The meaning of each attribute, from the section Attributes of a docstring; several names may share a line."""
    text = inspect.getdoc(kind) or ""
    section = text.partition("Attributes:")[2].partition("\nRaises:")[0]
    meanings: dict[str, str] = {}
    for names, meaning in re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n        .*)*)", section, re.MULTILINE):
        for name in names.split(", "):
            meanings[name] = " ".join(meaning.split())
    return meanings


def first_sentence(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def in_toml(value: object) -> str:
    """A default as in a study file; a table of settings with their own defaults is empty."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return "{}" if is_dataclass(value) else shown(value)


def shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def exit_codes() -> str:
    return "```\n" + EXIT_CODES.split("\n", 1)[1] + "\n```"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def compatibility() -> str:
    """Each method tried on a small random model of each family."""
    columns = [slug for slug, method in methods().items() if acts_on_model(method) or slug == "baseline"]
    rows = [f"| family | {' | '.join(f'`{slug}`' for slug in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for family, make in FAMILIES.items():
        cells = [verdict(make(), methods()[slug]) for slug in columns]
        rows.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(rows)


def acts_on_model(method: Method) -> bool:
    return any(isinstance(intervention, ModelIntervention) for intervention in method.interventions)


def refusals() -> str:
    """Each method tried with each optimizer, and with QK-Clip, on a small GPT with an untied head."""
    settings = {"torch": {"name": "SGD"}}
    columns: dict[str, dict[str, Any]] = {
        f"`{slug}`": {"optimizer": {slug: settings.get(slug, {})}} for slug in optimizers()
    }
    columns["`global_clip`"] = {"common": [{"global_clip": {}}]}
    columns["`qk_clip`"] = {"common": [{"qk_clip": {}}]}
    reasons: dict[str, str] = {}
    rows = [f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for slug in methods():
        cells: list[str] = []
        for tables in columns.values():
            why = why_refused({"common": [], **tables, "method": slug})
            cells.append("yes" if why is None else f"no ({reasons.setdefault(why, chr(ord('a') + len(reasons)))})")
        rows.append(f"| `{slug}` | {' | '.join(cells)} |")
    notes = [f"- ({letter}) {why}" for why, letter in reasons.items()]
    return "\n".join([*rows, "", *notes])


def why_refused(tables: dict[str, Any]) -> str | None:
    """The error with which a run is refused, without the names of the method and of places; None if it is not."""
    size = {"width": 16, "num_layers": 2, "num_heads": 2, "context": 16, "tied": False}
    spec = read_run({"learning_rate": 0.01, "model": size, **tables}, "")
    try:
        model = build(spec, torch.device("cpu"))
        start_rules(model, build_optimizer(model, spec), spec)
    except (ConflictError, OptimizerError, SiteUnavailableError) as error:
        text = str(error).split("; leave ")[0]
        text = re.sub(r"blocks\S+|trimtab\S+", "a matrix of the method", text)
        own = [i.slug() for i in spec.method]
        for slug in own:
            text = re.sub(rf"\b{slug}\b", "the method", text)
        return text
    return None


def verdict(model: nn.Module, method: Method) -> str:
    host = host_for(model)
    try:
        installed = method.install(host)
    except ConflictError:
        return "built in"
    except SiteUnavailableError:
        return "no such place"
    tokens = torch.zeros(1, 8, dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    logits_of(model, tokens).sum().backward()
    optimizer.step()
    found = "removed"
    for one in reversed(installed):
        try:
            one.remove()
        except RemovalError:
            try:
                one.merge()
                found = "merged"
            except MergeError:
                return "stays"
    return found


def probe_table() -> str:
    rows = ["| statistic | unit | what it tells | source | from preset |", "|---|---|---|---|---|"]
    for probe in probes().values():
        row = (f"`{probe.slug}`", probe.unit, probe.meaning, probe.source or "", f"`{probe.cost}`")
        rows.append(f"| {' | '.join(cell(text) for text in row)} |")
    return "\n".join(rows)


BLOCKS = {
    "compatibility": compatibility,
    "optimizers": optimizer_table,
    "executors": executor_table,
    "stackable": stackable,
    "refusals": refusals,
    "probes": probe_table,
    "method-table": method_table,
    "method-details": method_details,
    "intervention-table": intervention_table,
    "exit-codes": exit_codes,
    "claims": lambda: claims.table("../"),
    "claims-from-the-root": lambda: claims.table(""),
}


def fill(text: str) -> str:
    for name, content in BLOCKS.items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
        if begin in text:
            before, rest = text.split(begin, 1)
            _, after = rest.split(end, 1)
            text = f"{before}{begin}\n{content()}\n\n{end}{after}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [
        target for target in TARGETS if target.read_text(encoding="utf-8") != fill(target.read_text(encoding="utf-8"))
    ]
    if check and stale:
        print(f"stale: {', '.join(str(t.relative_to(ROOT)) for t in stale)}; run 'make tables'", file=sys.stderr)
        return 1
    for target in stale:
        target.write_text(fill(target.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
